package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
	"countersign/storage/storagetest"
)

var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(t *testing.T) func() storagetest.Store {
		path := filepath.Join(t.TempDir(), "store.db")
		var s *Store
		t.Cleanup(func() { s.Close() })
		return func() storagetest.Store {
			if s != nil {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
			s = mustOpen(t, path, Options{})
			return s
		}
	})
}

func mustOpen(t *testing.T, path string, opts Options) *Store {
	t.Helper()
	s, err := Open(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// made is a closed store with one record and one open operation.
func made(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	defer s.Close()
	if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{record("one")}, Operations: []approvals.Operation{{ID: "op", State: approvals.PendingApproval, Revision: 1}}}); err != nil {
		t.Fatal(err)
	}
	return path
}

func record(id string) gate.Entry {
	return gate.Entry{Record: audit.Record{V: audit.Version, ID: id, Time: noon, Type: audit.ToolIntent}}
}

func TestFilesAreForTheirOwner(t *testing.T) {
	path := made(t)
	for _, name := range []string{path, path + ".key"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestOneProcess(t *testing.T) {
	path := made(t)
	s := mustOpen(t, path, Options{})
	for _, opts := range []Options{{}, {ReadOnly: true}} {
		if second, err := Open(path, opts); !errors.Is(err, ErrLocked) {
			t.Errorf("%+v: %v, %v; want ErrLocked", opts, second, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path, Options{}).Close()
}

// What is not one of our files, or is missing its key, is not opened, and
// nothing in it is changed.
func TestOpenRefuses(t *testing.T) {
	for _, row := range []struct {
		name string
		ruin func(t *testing.T, path string)
		want string
	}{
		{"somebody else's bbolt file", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			edit(t, path, func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
		}, "this is a bbolt file, but not one of Countersign's"},
		{"another format", func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put([]byte("format"), []byte("countersign/9")) })
		}, `the file has format "countersign/9"; this version reads "countersign/2"`},
		{"the format of before the log was signed", func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put([]byte("format"), []byte("countersign/1")) })
		}, `the file has format "countersign/1"; this version reads "countersign/2"`},
		{"no format", func(t *testing.T, path string) {
			edit(t, path, func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Delete([]byte("format")) })
		}, `the file has format ""; this version reads "countersign/2"`},
		{"not a database", func(t *testing.T, path string) { write(t, path, bytes.Repeat([]byte("x"), 64<<10), 0o600) }, "invalid database"},
		{"cut within its first pages", func(t *testing.T, path string) {
			if err := os.Truncate(path, 4096); err != nil {
				t.Fatal(err)
			}
		}, "opening "},
		{"damaged pages", func(t *testing.T, path string) {
			data := read(path)
			for i := 2 * os.Getpagesize(); i < len(data); i++ { // all but the two that say where the others are
				data[i] ^= 0xa5
			}
			write(t, path, data, 0o600)
		}, "the file is damaged: "},
		{"no key", func(t *testing.T, path string) {
			if err := os.Remove(path + ".key"); err != nil {
				t.Fatal(err)
			}
		}, "reading the store's key: "},
		{"another key", func(t *testing.T, path string) { write(t, path+".key", bytes.Repeat([]byte{7}, keyBytes), 0o600) }, "is not the one that the file was made with; put back the right one"},
		{"half a key", func(t *testing.T, path string) { write(t, path+".key", []byte("short"), 0o600) }, "it has 5 bytes instead of 32; put back the right one"},
		{"an empty key", func(t *testing.T, path string) { write(t, path+".key", nil, 0o600) }, "it has 0 bytes instead of 32; put back the right one"},
		{"a key that others may read", func(t *testing.T, path string) {
			if err := os.Chmod(path+".key", 0o644); err != nil {
				t.Fatal(err)
			}
		}, "may be read by others (mode 0644): chmod 600 it"},
		{"a key that a group may write", func(t *testing.T, path string) {
			if err := os.Chmod(path+".key", 0o620); err != nil {
				t.Fatal(err)
			}
		}, "may be read by others (mode 0620): chmod 600 it"},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, opts := range []Options{{}, {ReadOnly: true}} {
				path := made(t)
				row.ruin(t, path)
				before, keyBefore := read(path), read(path+".key")
				s, err := Open(path, opts)
				if err == nil || s != nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("%+v: %v; want an error with %q", opts, err, row.want)
				}
				if !bytes.Equal(before, read(path)) || !bytes.Equal(keyBefore, read(path+".key")) {
					t.Error("the files were changed")
				}
			}
		})
	}
}

func edit(t *testing.T, path string, f func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, data []byte, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// read is a file's content, nil when there is none.
func read(path string) []byte {
	data, _ := os.ReadFile(path)
	return data
}

func TestReadOnly(t *testing.T) {
	path := made(t)
	before := read(path)
	s := mustOpen(t, path, Options{ReadOnly: true})
	other := mustOpen(t, path, Options{ReadOnly: true}) // readers do not exclude each other
	n := 0
	if err := s.Records(1, func(uint64, []byte) error { n++; return nil }); err != nil || n != 1 {
		t.Errorf("%d records, %v", n, err)
	}
	if seq, record, err := s.Head(); err != nil || seq != 1 || !bytes.HasPrefix(record, []byte(`{"v":1,"seq":1,`)) {
		t.Errorf("the newest is %d %s, %v", seq, record, err)
	}
	if op, err := other.Operation("op"); err != nil || op.ID != "op" {
		t.Errorf("%+v, %v", op, err)
	}
	if err := errors.Join(s.Close(), other.Close()); err != nil || !bytes.Equal(before, read(path)) {
		t.Errorf("%v, or the file was changed", err)
	}

	absent := filepath.Join(t.TempDir(), "absent.db")
	if _, err := Open(absent, Options{ReadOnly: true}); err == nil || read(absent) != nil || read(absent+".key") != nil {
		t.Errorf("a log that is not there: %v", err)
	}
}

// A crash between the key and the first transaction leaves a key without a
// store: it is taken, not replaced.
func TestKeyWithoutStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	key := bytes.Repeat([]byte{7}, keyBytes)
	write(t, path+".key", key, 0o600)
	mustOpen(t, path, Options{}).Close()
	if !bytes.Equal(read(path+".key"), key) {
		t.Error("the key was replaced")
	}
}

// What nobody waits for is stored together with what comes next, when the store is
// closed, and by itself after a moment.
func TestLate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	open := func(moment time.Duration) *Store {
		lateBy = moment
		return mustOpen(t, path, Options{})
	}
	defer func(was time.Duration) { lateBy = was }(lateBy)
	later := func(s *Store, id string) (done chan error) {
		entries := []gate.Entry{record(id)}
		lines, err := encode(entries)
		if err != nil {
			t.Fatal(err)
		}
		done = make(chan error, 1)
		s.queue <- &commit{batch: gate.Batch{Entries: entries, Late: true}, lines: lines, done: done}
		return done
	}
	stored := func(s *Store) (n, transactions int) {
		err := s.view(func(tx *bbolt.Tx) error {
			transactions = tx.ID()
			return nil
		})
		if err = errors.Join(err, s.Records(1, func(uint64, []byte) error { n++; return nil })); err != nil {
			t.Fatal(err)
		}
		return n, transactions
	}

	s := open(time.Hour)
	_, before := stored(s)
	a, b := later(s, "a"), later(s, "b")
	for len(s.queue) > 0 {
		runtime.Gosched()
	}
	if err := errors.Join(s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{record("c")}}), <-a, <-b); err != nil {
		t.Fatal(err)
	}
	if n, after := stored(s); n != 3 || after != before+1 {
		t.Errorf("%d records are stored in %d transactions", n, after-before)
	}
	d := later(s, "d")
	if err := errors.Join(s.Close(), <-d); err != nil {
		t.Fatal(err)
	}

	s = open(time.Millisecond)
	if err := <-later(s, "e"); err != nil {
		t.Fatal(err)
	}
	if n, _ := stored(s); n != 5 {
		t.Errorf("%d records are stored", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Derived keys are the same after a restart, and tell nothing of each other.
func TestKeyForAPurpose(t *testing.T) {
	path := made(t)
	s := mustOpen(t, path, Options{})
	digest, session := s.Key("digest"), s.Key("session")
	s.Close()
	s = mustOpen(t, path, Options{})
	defer s.Close()
	if len(digest) != 32 || bytes.Equal(digest, session) || !bytes.Equal(digest, s.Key("digest")) || bytes.Contains(read(path+".key"), digest) {
		t.Error("a purpose has one key of its own")
	}
	other := mustOpen(t, made(t), Options{})
	defer other.Close()
	if bytes.Equal(digest, other.Key("digest")) {
		t.Error("two stores share a key")
	}
}

// Operations hold what will be sent. Nothing of it is in the file in the clear,
// nor in pages that were freed; and one that was changed there does not open.
func TestOperationsAreSealed(t *testing.T) {
	const marker = "hunter2-hunter2-hunter2"
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	op := approvals.Operation{
		ID: "op", State: approvals.PendingApproval, Tool: "tool-" + marker, AgentReason: marker, Result: marker, Args: map[string]any{marker: marker},
		Plan:  action.Plan{Actions: []action.Action{{Verb: action.Patch, Name: marker, Body: map[string]any{"stringData": map[string]any{"password": marker}}}}},
		Diffs: [][]action.Change{{{Op: "add", Path: "/" + marker, New: marker}}},
	}
	for op.Revision = 1; op.Revision < 20; op.Revision++ {
		err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{record("a record is in the clear")}, Operations: []approvals.Operation{op}, Question: &gate.Question{Key: marker, Op: "op", Was: was(op.Revision)}})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data := read(path)
	if bytes.Contains(data, []byte("hunter2")) {
		t.Error("a secret value is in the file")
	}
	if !bytes.Contains(data, []byte("a record is in the clear")) {
		t.Error("the search would not have found it")
	}

	edit(t, path, func(tx *bbolt.Tx) error {
		sealed := bytes.Clone(tx.Bucket(bucketOperations).Get([]byte("op")))
		sealed[len(sealed)/2] ^= 1
		return tx.Bucket(bucketOperations).Put([]byte("op"), sealed)
	})
	s = mustOpen(t, path, Options{})
	defer s.Close()
	if got, err := s.Operation("op"); err == nil || got.State != "" || !strings.Contains(err.Error(), "the file was changed") {
		t.Errorf("a changed operation is loaded as %+v, %v", got, err)
	}
	if open, err := s.OpenOperations(); err == nil {
		t.Errorf("a changed operation is taken up: %+v", open)
	}
}

func was(revision uint64) string {
	if revision == 1 {
		return ""
	}
	return "op"
}

// A grant says who may do what without being asked, so it is sealed as operations
// are, and neither can be put in the other's place, or in another's.
func TestGrantsAreSealed(t *testing.T) {
	const marker = "hunter2-hunter2-hunter2"
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	err := s.Commit(t.Context(), gate.Batch{
		Entries:    []gate.Entry{record("in the clear")},
		Operations: []approvals.Operation{{ID: "a", Revision: 1, State: approvals.PendingApproval, Tool: marker}, {ID: "b", Revision: 1, State: approvals.PendingApproval}},
		Grants:     []approvals.Grant{{ID: "a", Revision: 1, Tool: marker, Revoked: marker}, {ID: "b", Revision: 1}},
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if data := read(path); bytes.Contains(data, []byte("hunter2")) || !bytes.Contains(data, []byte("in the clear")) {
		t.Error("what a grant is for is in the file")
	}
	for name, swap := range map[string]func(operations, grants *bbolt.Bucket) error{
		"nothing": func(_, _ *bbolt.Bucket) error { return nil },
		"an operation for a grant": func(operations, grants *bbolt.Bucket) error {
			return grants.Put([]byte("a"), bytes.Clone(operations.Get([]byte("a"))))
		},
		"one grant for another": func(_, grants *bbolt.Bucket) error {
			return grants.Put([]byte("b"), bytes.Clone(grants.Get([]byte("a"))))
		},
		"a grant for an operation": func(operations, grants *bbolt.Bucket) error {
			return operations.Put([]byte("a"), bytes.Clone(grants.Get([]byte("a"))))
		},
	} {
		t.Run(name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "store.db")
			write(t, copied, read(path), 0o600)
			write(t, copied+".key", read(path+".key"), 0o600)
			write(t, filepath.Join(filepath.Dir(copied), "audit.key"), read(filepath.Join(filepath.Dir(path), "audit.key")), 0o600)
			edit(t, copied, func(tx *bbolt.Tx) error { return swap(tx.Bucket(bucketOperations), tx.Bucket(bucketGrants)) })
			s := mustOpen(t, copied, Options{})
			defer s.Close()
			_, errGrants := s.Grants()
			errOperations := s.Operations(func(approvals.Operation) bool { return true })
			if noticed := errors.Join(errGrants, errOperations); (noticed == nil) != (name == "nothing") {
				t.Errorf("noticed: %v", noticed)
			}
		})
	}
}

// What a messenger has to be told is noted with the commit that makes it so, and
// forgotten once it has been told of that or what came after.
func TestUntold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{Messenger: true})
	defer func() { s.Close() }()
	asked := []approvals.Requirement{{Rule: "r", Approvers: []string{"sre"}, Count: 1}}
	put := func(id string, revision uint64, change func(*approvals.Operation)) {
		t.Helper()
		op := approvals.Operation{ID: id, State: approvals.PendingApproval, Revision: revision, Requirements: asked}
		if change != nil {
			change(&op)
		}
		if err := s.Commit(t.Context(), gate.Batch{Operations: []approvals.Operation{op}}); err != nil {
			t.Fatal(err)
		}
	}
	told := func(id string, revision uint64) {
		t.Helper()
		if err := s.Delivered(t.Context(), approvals.Delivery{Op: id, Revision: revision, Messages: []approvals.Message{{To: "C1", Revision: revision, Begun: noon}}}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when, want string) {
		t.Helper()
		ids, err := s.Untold(10, func(string) bool { return false })
		if got := strings.Join(ids, " "); err != nil || got != want {
			t.Errorf("%s: untold are %q, %v; want %q", when, got, err, want)
		}
	}
	more := func() bool {
		select {
		case <-s.More():
			return true
		default:
			return false
		}
	}

	put("op-2", 1, nil)
	if !more() || more() {
		t.Error("nobody is told that there is more")
	}
	put("op-1", 1, nil)
	put("op-3", 1, nil)
	if !more() || more() {
		t.Error("of two commits there is one sign")
	}
	put("allowed", 1, func(op *approvals.Operation) { op.Requirements, op.State = nil, approvals.Executing })
	put("granted", 1, func(op *approvals.Operation) { op.Grant, op.State = "g", approvals.Executing })
	put("granted", 2, func(op *approvals.Operation) { op.Grant, op.State = "g", approvals.Succeeded })
	if more() {
		t.Error("what nobody was asked about is told")
	}
	want("the oldest first", "op-1 op-2 op-3")
	for _, row := range []struct {
		most       int
		skip, want string
	}{{2, "", "op-1 op-2"}, {2, "op-1", "op-2 op-3"}, {1, "op-1 op-2", "op-3"}, {0, "", ""}, {9, "op-1 op-2 op-3", ""}} {
		ids, err := s.Untold(row.most, func(id string) bool { return strings.Contains(row.skip, id) })
		if got := strings.Join(ids, " "); err != nil || got != row.want {
			t.Errorf("at most %d without %q: %q, %v; want %q", row.most, row.skip, got, err, row.want)
		}
	}

	told("op-1", 1)
	want("one is told", "op-2 op-3")
	put("op-2", 2, func(op *approvals.Operation) { op.State = approvals.Authorized })
	told("op-2", 1)
	want("told of what it was before", "op-2 op-3")
	if d, err := s.Delivery("op-2"); err != nil || d.Op != "op-2" || d.Revision != 1 || len(d.Messages) != 1 || !d.Messages[0].Begun.Equal(noon) {
		t.Errorf("the delivery is %+v, %v", d, err)
	}
	told("op-2", 2)
	told("op-3", 7)
	want("told of what it is, or more", "")
	put("op-1", 2, func(op *approvals.Operation) { op.State = approvals.Rejected })
	want("it changes again", "op-1")
	told("old", 0)
	want("one from before there was a messenger", "old op-1")
	told("op-1", 0)
	want("told nothing of what waits already", "old op-1")
	if d, err := s.Delivery("none"); err != nil || d.Op != "none" || d.Revision != 0 || d.Messages != nil {
		t.Errorf("a delivery that is not there: %+v, %v", d, err)
	}

	// A conflict leaves no note.
	err := s.Commit(t.Context(), gate.Batch{Operations: []approvals.Operation{{ID: "op-3", State: approvals.PendingApproval, Revision: 1, Requirements: asked}}, Deliveries: []approvals.Delivery{{Op: "op-1", Revision: 9}}})
	if !errors.Is(err, gate.ErrConflict) {
		t.Fatal(err)
	}
	want("after a conflict", "old op-1")

	s.Close()
	s = mustOpen(t, path, Options{Messenger: true})
	want("after a restart", "old op-1")
	if d, err := s.Delivery("op-3"); err != nil || d.Revision != 7 {
		t.Errorf("after a restart: %+v, %v", d, err)
	}

	s.Close()
	s = mustOpen(t, path, Options{})
	put("op-4", 1, nil)
	want("without a messenger", "old op-1")
	if more() {
		t.Error("without a messenger there is more")
	}
}

// payload gives an entry a payload that its record commits to.
func payload(e *gate.Entry, data []byte) {
	sum := sha256.Sum256(data)
	e.Payload, e.Record.Payload = data, &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(data)}
}
