package storage

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
)

// batch is of one record with a payload that does not pack, and of one operation.
func batch(id, recordType string) gate.Batch {
	e := record(id)
	e.Record.Type, e.Record.Op = recordType, "op-"+id
	e.Payload = make([]byte, 10_000)
	rand.Read(e.Payload)
	sum := sha256.Sum256(e.Payload)
	e.Record.Payload = &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(e.Payload)}
	return gate.Batch{Entries: []gate.Entry{e}, Operations: []approvals.Operation{{ID: id, State: approvals.PendingApproval, Revision: 1}}}
}

// holds checks that the log is of these records, in any order, each with its
// operation, and that nothing is wrong with it.
func holds(t *testing.T, path string, opts Options, want map[string]bool) {
	t.Helper()
	s := mustOpen(t, path, opts)
	defer s.Close()
	n := 0
	err := s.Records(1, func(seq uint64, data []byte) error {
		var r audit.Record
		if err := json.Unmarshal(data, &r); err != nil {
			return err
		}
		if n++; seq != uint64(n) || !want[r.ID] {
			t.Errorf("record %d after %d is %s", seq, n-1, r.ID)
		}
		return nil
	})
	open, errOpen := s.OpenOperations()
	if err := errors.Join(err, errOpen); err != nil || n != len(want) || len(open) != n {
		t.Errorf("%d records and %d operations of %d, %v", n, len(open), len(want), err)
	}
	report, err := s.Verify(t.Context(), s.signer.verifier, nil)
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

// Near its limit the store takes what ends something, and refuses what begins
// something; at the limit it refuses both. What it has refused is not stored, what it
// has taken is there, and with a higher limit it goes on.
func TestFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	opts := Options{MaxBytes: 16 << 20}
	s := mustOpen(t, path, opts)
	s.db.NoSync = true // thousands of commits, none of which has to outlive a machine
	want := map[string]bool{}
	fill := func(recordType string) int {
		for n := range 10_000 {
			id := fmt.Sprintf("%s-%d", recordType, n)
			err := s.Commit(t.Context(), batch(id, recordType))
			if errors.Is(err, gate.ErrFull) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			want[id] = true
		}
		t.Fatal("the file grows beyond its limit")
		return 0
	}
	fill(audit.ToolIntent)
	if err := s.Room(); !errors.Is(err, gate.ErrFull) || !strings.Contains(err.Error(), "raise maxStoreBytes") || s.Healthy() != nil {
		t.Errorf("room: %v, health: %v", err, s.Healthy())
	}
	if n := fill(audit.ExecOutcome); n < 10 {
		t.Errorf("of what ends something %d more fit", n)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > int64(opts.MaxBytes) || info.Size() < int64(opts.MaxBytes)*9/10 {
		t.Errorf("the file has %d bytes", info.Size())
	}
	// Again and again, each time with a look at what is in the file. One may fit yet:
	// what the transaction that failed had freed can be used since.
	for n, refused := 0, 0; refused < 3; n++ {
		id := fmt.Sprint("too much-", n)
		err := s.Commit(t.Context(), batch(id, audit.ExecOutcome))
		if s.Healthy() != nil || err != nil && !errors.Is(err, gate.ErrFull) || n > 20 {
			t.Fatalf("%d: %v, health: %v", n, err, s.Healthy())
		}
		if err == nil {
			want[id] = true
		} else {
			refused++
		}
	}
	if op, err := s.Operation("tool.intent-0"); err != nil || op.ID == "" {
		t.Errorf("what is there can still be looked at: %+v, %v", op, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	holds(t, path, opts, want)

	opts.MaxBytes *= 2
	s = mustOpen(t, path, opts)
	if err := s.Commit(t.Context(), batch("more", audit.ToolIntent)); err != nil || s.Room() != nil {
		t.Errorf("%v, %v", err, s.Room())
	}
	want["more"] = true
	s.Close()
	holds(t, path, opts, want)
}

// What begins something and does not fit does not take along what ends something and
// came at the same time.
func TestFullTogether(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{MaxBytes: 4 << 20})
	defer s.Close()
	var group []*commit
	for id, recordType := range map[string]string{"large": audit.ToolIntent, "small": audit.ExecOutcome} {
		b := batch(id, recordType)
		if id == "large" {
			b.Entries[0].Payload = make([]byte, 8<<20)
			rand.Read(b.Entries[0].Payload)
		}
		lines, err := encode(b.Entries)
		if err != nil {
			t.Fatal(err)
		}
		group = append(group, &commit{batch: b, lines: lines, done: make(chan error, 1)})
	}
	s.commit(group) // the writer has nothing to do
	for _, c := range group {
		if err := <-c.done; errors.Is(err, gate.ErrFull) != c.batch.Begins() || !c.batch.Begins() && err != nil {
			t.Errorf("%s: %v", c.batch.Entries[0].Record.ID, err)
		}
	}
	if seq, record, err := s.Head(); seq != 1 || !bytes.Contains(record, []byte(`"id":"small"`)) || err != nil {
		t.Errorf("%d %s, %v", seq, record, err)
	}
}

// The system takes no more and takes more again, several times, under many writers,
// and without a restart: what was acknowledged is there, and what was refused is not.
func TestNoRoomForAWhile(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	limit := func(size uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	defer limit(before.Cur)

	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	var mu sync.Mutex
	stored := map[string]bool{}
	refused := 0
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				recordType := audit.ToolIntent
				if i%2 == 1 {
					recordType = audit.ExecOutcome
				}
				id := fmt.Sprintf("%d-%d", w, i)
				err := s.Commit(t.Context(), batch(id, recordType))
				mu.Lock()
				switch {
				case err == nil:
					stored[id] = true
				case errors.Is(err, gate.ErrFull):
					refused++
				default:
					t.Error(err)
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(time.Millisecond) // so that refusals do not keep the processor
				}
			}
		})
	}
	count := func() (int, int) {
		mu.Lock()
		defer mu.Unlock()
		return len(stored), refused
	}
	until := func(what string, holds func(stored, refused int) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if holds(count()) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("never: %s; room: %v", what, s.Room())
			}
		}
	}
	for range 3 {
		have, _ := count()
		until("some are stored", func(stored, _ int) bool { return stored > have+50 })
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		_, were := count()
		limit(uint64(info.Size()))
		until("some are refused", func(_, refused int) bool { return refused > were+20 })
		limit(before.Cur)
	}
	until("something can begin again", func(int, int) bool { return s.Room() == nil })
	have, _ := count()
	until("some are stored", func(stored, _ int) bool { return stored > have+50 })
	close(stop)
	writers.Wait()
	if err := errors.Join(s.Healthy(), s.Close()); err != nil {
		t.Error(err)
	}
	holds(t, path, Options{}, stored)
}

// A file that is damaged while it is open is an error to whoever reads or writes, ends
// all writing, and ends nothing else.
func TestDamagedWhileOpen(t *testing.T) {
	for name, ruin := range map[string]func(t *testing.T, path string){
		"other bytes": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, _ := f.Stat()
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xa5}, int(info.Size())-2*os.Getpagesize()), int64(2*os.Getpagesize())); err != nil {
				t.Fatal(err)
			}
		},
		"other bytes from the beginning": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 4*os.Getpagesize()), 0); err != nil {
				t.Fatal(err)
			}
		},
		"cut":       func(t *testing.T, path string) { truncate(t, path, int64(4*os.Getpagesize())) },
		"cut whole": func(t *testing.T, path string) { truncate(t, path, 0) },
	} {
		for _, first := range []string{"read", "write"} {
			t.Run(name+", "+first+" first", func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "store.db")
				s := mustOpen(t, path, Options{})
				for i := range 50 {
					if err := s.Commit(t.Context(), batch(fmt.Sprint(i), audit.ToolIntent)); err != nil {
						t.Fatal(err)
					}
				}
				ruin(t, path)
				if first == "read" {
					if err := s.Records(1, func(uint64, []byte) error { return nil }); !errors.Is(err, errDamaged) {
						t.Errorf("reading: %v", err)
					}
				}
				for range 2 {
					if err := s.Commit(t.Context(), batch("more", audit.ExecOutcome)); !errors.Is(err, ErrPoisoned) || !errors.Is(err, errDamaged) {
						t.Errorf("writing: %v", err)
					}
				}
				if err := s.Records(1, func(uint64, []byte) error { return nil }); err == nil {
					t.Error("it can be read all the same")
				}
				if err := s.Room(); !errors.Is(err, ErrPoisoned) {
					t.Errorf("room: %v", err)
				}
				s.Close()
				if s, err := Open(path, Options{}); err == nil {
					s.Close()
					t.Error("it opens again")
				} else if errors.Is(err, ErrLocked) {
					t.Error("the lock is still held")
				}
			})
		}
	}
}

// What is behind a mapping can go at any moment, also while a transaction reads it.
func TestCutWhileRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	for i := range 50 {
		if err := s.Commit(t.Context(), batch(fmt.Sprint(i), audit.ToolIntent)); err != nil {
			t.Fatal(err)
		}
	}
	err := s.view(func(tx *bbolt.Tx) error {
		truncate(t, path, int64(4*os.Getpagesize()))
		return tx.Bucket(bucketPayloads).ForEach(func(_, v []byte) error { _ = bytes.Clone(v); return nil })
	})
	if !errors.Is(err, errDamaged) || !errors.Is(s.Healthy(), ErrPoisoned) {
		t.Errorf("%v, health: %v", err, s.Healthy())
	}
	s.Close()
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// Only what failed before its sync, and for lack of room, is looked at again.
func TestLacksRoom(t *testing.T) {
	write := func(errno syscall.Errno) error { return &os.PathError{Op: "write", Path: "f", Err: errno} }
	for _, row := range []struct {
		err  error
		want bool
	}{
		{write(syscall.ENOSPC), true}, {write(syscall.EDQUOT), true}, {write(syscall.EFBIG), true},
		{write(syscall.EIO), false}, {write(syscall.EROFS), false},
		{syscall.ENOSPC, false}, {syscall.EIO, false}, // of a sync
		{errors.New("file resize error: " + (&os.PathError{Op: "truncate", Path: "f", Err: syscall.ENOSPC}).Error()), true},
		{errors.New("file resize error: " + (&os.PathError{Op: "truncate", Path: "f", Err: syscall.EIO}).Error()), false},
		{errors.New("file sync error: " + (&os.PathError{Op: "sync", Path: "f", Err: syscall.ENOSPC}).Error()), false},
		{errors.New("anything else"), false},
	} {
		if got := lacksRoom(row.err); got != row.want {
			t.Errorf("%v: %v", row.err, got)
		}
	}
}

// What was read of the file does not stay in the memory of the process that reads it.
func TestUnmap(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells what is mapped")
	}
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	defer s.Close()
	s.db.NoSync = true
	commit := func(id string) {
		t.Helper()
		if err := s.Commit(t.Context(), batch(id, audit.ToolIntent)); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 500 {
		commit(fmt.Sprint("before-", n))
	}
	if _, err := s.Verify(t.Context(), s.signer.verifier, nil); err != nil {
		t.Fatal(err)
	}
	if kB := mapped(t, path); kB < 4000 {
		t.Fatalf("%d kB of the file are mapped after all of it was read", kB)
	}
	defer func(every time.Duration) { unmapEvery = every }(unmapEvery)
	unmapEvery = 0
	commit("after")
	if kB := mapped(t, path); kB > 1000 {
		t.Errorf("%d kB of the file are still mapped", kB)
	}
}

// mapped is how much of a file is in this process's memory, in kB.
func mapped(t *testing.T, path string) (kB int) {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, mapping, found := strings.Cut(string(smaps), path+"\n")
	_, rss, _ := strings.Cut(mapping, "\nRss:")
	if _, err := fmt.Sscan(rss, &kB); err != nil || !found {
		t.Fatalf("%s is not mapped: %v", path, err)
	}
	return kB
}
