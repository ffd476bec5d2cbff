package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
	"countersign/audit/logtest"
	"countersign/gate"
)

// fill commits records of a Maker, and after each stretch of records one that says
// that a checkpoint was anchored.
func fill(t testing.TB, s *Store, m *logtest.Maker, size, stretch int) {
	t.Helper()
	for n := len(leaves(t, s)); n < size; n++ {
		var e gate.Entry
		if made := m.Next(); stretch > 0 && n%stretch == stretch-1 {
			e = anchored(t, s, made.Record.Time)
		} else {
			e = gate.Entry{Record: made.Record, Payload: made.Payload}
			if made.Payload != nil && n%3 == 0 {
				e.Sealed = fmt.Appendf(nil, "sealed payload %d", n)
				sum := sha256.Sum256(e.Sealed)
				e.Record.Payload.Sealed, e.Record.Payload.SealedSHA256 = "what it commits to", hex.EncodeToString(sum[:])
			}
		}
		if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}}); err != nil {
			t.Fatal(err)
		}
	}
}

func anchored(t testing.TB, s *Store, at time.Time) gate.Entry {
	t.Helper()
	signed := checkpoint(t, s)
	c, err := audit.OpenCheckpoint(signed, s.signer.verifier)
	if err != nil {
		t.Fatal(err)
	}
	return gate.Entry{Record: audit.Record{V: audit.Version, ID: fmt.Sprintf("anchor %d", c.Size), Time: at, Type: audit.LogCheckpoint, Checkpoint: &audit.Anchored{Size: c.Size, Note: string(signed), Anchors: []string{"file"}}}}
}

func checkpoint(t testing.TB, s *Store) []byte {
	t.Helper()
	signed, err := s.Checkpoint()
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func leaves(t testing.TB, s *Store) (leaves [][]byte) {
	t.Helper()
	if err := s.Records(0, func(_ uint64, leaf []byte) error {
		leaves = append(leaves, bytes.Clone(leaf))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return leaves
}

func verified(t testing.TB, s *Store, key note.Verifier, more ...[]byte) audit.Report {
	t.Helper()
	report, err := s.Verify(t.Context(), key, more)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// unsynced opens a store whose writes are not made durable, to be quick.
func unsynced(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, Options{Origin: "log.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	s.db.NoSync = true
	return s
}

// pruning is a record that has the store take out what comes before others.
func pruning(t testing.TB, s *Store, records, payloads uint64) gate.Entry {
	t.Helper()
	edge, err := s.ReadHashes(audit.EdgeIndexes(records - 1))
	if err != nil {
		t.Fatal(err)
	}
	return gate.Entry{Record: audit.Record{V: audit.Version, ID: "pruned", Time: logtest.Start, Type: audit.LogPruned, Pruned: &audit.Pruned{RecordsBefore: records, PayloadsBefore: payloads, Edge: edge}}}
}

func pruneTo(t testing.TB, s *Store, records, payloads uint64) {
	t.Helper()
	if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{pruning(t, s, records, payloads)}}); err != nil {
		t.Fatal(err)
	}
}

// A log that nobody touched passes, at every length, whatever was pruned, while it
// grows, and after it was opened again; its export passes too.
func TestUntouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := unsynced(t, path)
	defer func() { s.Close() }()
	maker := logtest.New(1)
	var all [][]byte
	check := func(what string, first uint64) {
		t.Helper()
		all = append(all, checkpoint(t, s))
		report := verified(t, s, s.signer.verifier, all...)
		got := leaves(t, s)
		if size := report.Size; len(report.Findings) > 0 || report.First != first || report.Checkpoints < 1 || uint64(len(got)) != size-first+1 {
			t.Fatalf("%s: %d records, %+v", what, len(got), report)
		}
		if report, err := audit.VerifyExport(bytes.NewReader(logtest.Export(got)), s.signer.verifier, all); err != nil || len(report.Findings) > 0 || report.First != first {
			t.Fatalf("%s, exported: %+v, %v", what, report, err)
		}
	}
	for _, size := range []int{0, 1, 2, 255, 256, 257, 300} {
		fill(t, s, maker, size, 40)
		check(fmt.Sprint(size), 1)
	}
	pruneTo(t, s, 1, 100)
	check("payloads pruned", 1)
	pruneTo(t, s, 70, 200)
	check("records pruned", 70)
	pruneTo(t, s, 257, 280)
	check("pruned to a block's end", 257)
	s.Close()
	s = unsynced(t, path)
	check("opened again", 257)
	pruneTo(t, s, 303, 303)
	check("pruned but for the newest", 303)
}

func TestUntouchedWhileItGrows(t *testing.T) {
	for _, prune := range []bool{false, true} {
		t.Run(fmt.Sprint("pruned ", prune), func(t *testing.T) {
			s := unsynced(t, filepath.Join(t.TempDir(), "store.db"))
			defer s.Close()
			maker := logtest.New(1)
			fill(t, s, maker, 1200, 400) // which is verified in several pieces
			stop, done := make(chan struct{}), make(chan error, 1)
			go func() {
				for n := uint64(1); ; n++ {
					select {
					case <-stop:
						done <- nil
						return
					default:
					}
					made := maker.Next()
					e := gate.Entry{Record: made.Record, Payload: made.Payload}
					switch {
					case n%3 == 0:
						e = anchored(t, s, e.Record.Time)
					case prune && n%3 == 1 && n < 300:
						e = pruning(t, s, 5*n, 8*n)
					}
					if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}}); err != nil {
						done <- err
						return
					}
				}
			}()
			defer func() {
				close(stop)
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			for range 3 {
				signed := checkpoint(t, s)
				if report := verified(t, s, s.signer.verifier, signed); len(report.Findings) > 0 {
					t.Fatalf("%+v", report.Findings)
				}
				if prune {
					continue
				}
				// An export up to the checkpoint that was taken first is whole.
				c, err := audit.OpenCheckpoint(signed, s.signer.verifier)
				if err != nil {
					t.Fatal(err)
				}
				if report, err := audit.VerifyExport(bytes.NewReader(logtest.Export(leaves(t, s)[:c.Size])), s.signer.verifier, [][]byte{signed}); err != nil || len(report.Findings) > 0 {
					t.Fatalf("%v, %+v", err, report.Findings)
				}
			}
		})
	}
}

// damage is what was done to the file: what may be said of it, of which record, 0
// for a finding about a checkpoint.
type damage struct {
	what   string
	kinds  []string
	record uint64
	most   uint64 // how many records a finding may be about, 0 for 1
}

// 10,000 random edits, removals and swaps of what the file has of the log are all
// found, each for what it is and where it is. With the race detector they are 1,000.
func TestTamperedStore(t *testing.T) {
	const size, stretch = 150, 32
	s := unsynced(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	fill(t, s, logtest.New(1), size, stretch)
	if report := verified(t, s, s.signer.verifier); len(report.Findings) > 0 {
		t.Fatalf("%+v", report.Findings)
	}
	seed, rounds := uint64(time.Now().UnixNano()), 10_000
	t.Logf("the seed is %d", seed)
	if race || testing.Short() {
		rounds = 1000
	}
	f := file{t: t, s: s, r: rand.New(rand.NewPCG(seed, 1)), size: size, stretch: stretch}
	for range rounds {
		var d damage
		f.change(func(tx *bbolt.Tx) { d = f.tamper(tx) })
		report, err := s.Verify(t.Context(), s.signer.verifier, nil)
		if err != nil {
			t.Errorf("seed %d: %s: %v", seed, d.what, err)
		}
		if len(d.kinds) > 0 && !slices.ContainsFunc(report.Findings, func(f audit.Finding) bool {
			return slices.Contains(d.kinds, f.Kind) && f.From <= d.record && d.record <= f.To && f.To-f.From <= d.most
		}) || len(report.Findings) > 20 {
			t.Errorf("seed %d: %s: want %v of record %d, got %d findings, %+v", seed, d.what, d.kinds, d.record, len(report.Findings), report.Findings[:min(12, len(report.Findings))])
		}
		f.undo()
		if t.Failed() {
			return
		}
	}
	if report := verified(t, s, s.signer.verifier); len(report.Findings) > 0 {
		t.Errorf("after all was undone: %+v", report.Findings)
	}
}

// file changes what is in the file, and back.
type file struct {
	t             *testing.T
	s             *Store
	r             *rand.Rand
	size, stretch uint64
	tx            *bbolt.Tx
	before        []row
	sequence      uint64
}

type row struct{ bucket, key, value []byte }

func (f *file) change(do func(tx *bbolt.Tx)) {
	if err := f.s.db.Update(func(tx *bbolt.Tx) error {
		f.tx, f.before, f.sequence = tx, nil, tx.Bucket(bucketRecords).Sequence()
		do(tx)
		return nil
	}); err != nil {
		f.t.Fatal(err)
	}
}

func (f *file) undo() {
	if err := f.s.db.Update(func(tx *bbolt.Tx) error {
		f.tx = tx
		for _, row := range slices.Backward(f.before) {
			f.write(row.bucket, row.key, row.value)
		}
		return tx.Bucket(bucketRecords).SetSequence(f.sequence)
	}); err != nil {
		f.t.Fatal(err)
	}
}

// put puts a value, nil for none, and remembers what was there.
func (f *file) put(bucket, key, value []byte) {
	f.before = append(f.before, row{bucket, key, f.get(bucket, key)})
	f.write(bucket, key, value)
}

func (f *file) get(bucket, key []byte) []byte { return bytes.Clone(f.tx.Bucket(bucket).Get(key)) }

func (f *file) write(bucket, key, value []byte) {
	b := f.tx.Bucket(bucket)
	err := b.Delete(key)
	if value != nil {
		err = b.Put(key, value)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

// edit changes one byte, or puts one in, or takes one out.
func (f *file) edit(value []byte) []byte {
	value = bytes.Clone(value)
	at, b := f.r.IntN(len(value)), byte(f.r.IntN(256))
	switch f.r.IntN(5) {
	case 0:
		return slices.Insert(value, at, b)
	case 1:
		return slices.Delete(value, at, at+1)
	case 2:
		return append(value, b)
	default:
		for b == value[at] {
			b = byte(f.r.IntN(256))
		}
		value[at] = b
		return value
	}
}

// with is a record that has a row in the bucket.
func (f *file) with(bucket []byte) (seq uint64, value []byte) {
	for value == nil {
		seq = 1 + f.r.Uint64N(f.size)
		value = f.get(bucket, seqKey(seq))
	}
	return seq, value
}

// swap swaps the values of two records.
func (f *file) swap(bucket []byte) (one uint64) {
	one, first := f.with(bucket)
	two, second := one, first
	for bytes.Equal(first, second) {
		two, second = f.with(bucket)
	}
	f.put(bucket, seqKey(one), second)
	f.put(bucket, seqKey(two), first)
	return one
}

func (f *file) tamper(tx *bbolt.Tx) damage {
	edited, moved := []string{audit.Edited}, []string{audit.Edited, audit.Reordered}
	meta := func(name string) []byte { return f.get(bucketMeta, []byte(name)) }
	switch kind := f.r.IntN(20); kind {
	case 0, 1, 2, 3:
		seq, leaf := f.with(bucketRecords)
		leaf = f.edit(leaf)
		f.put(bucketRecords, seqKey(seq), leaf)
		return damage{fmt.Sprintf("record %d is %q", seq, leaf), moved, seq, 0}
	case 4:
		seq, _ := f.with(bucketRecords)
		f.put(bucketRecords, seqKey(seq), nil)
		return damage{fmt.Sprintf("record %d is gone", seq), []string{audit.Removed}, seq, 0}
	case 5:
		seq := f.swap(bucketRecords)
		return damage{fmt.Sprintf("record %d is swapped", seq), []string{audit.Reordered}, seq, 0}
	case 6: // a record and its hashes, everything that follows from them, but for the signature
		seq, leaf := f.with(bucketRecords)
		at := bytes.Index(leaf, []byte(`"time":"`)) + 10
		leaf[at]++
		f.put(bucketRecords, seqKey(seq), leaf)
		f.rehash(seq)
		d := damage{fmt.Sprintf("record %d is %q, and all hashes are of that", seq, leaf), edited, seq, 2 * f.stretch}
		return d
	case 7, 8:
		seq, packed := f.with(bucketHashes)
		f.put(bucketHashes, seqKey(seq), f.edit(packed))
		return damage{fmt.Sprintf("the hashes of record %d are edited", seq), edited, seq, seq} // or those of a subtree that ends with it
	case 9:
		seq, _ := f.with(bucketHashes)
		f.put(bucketHashes, seqKey(seq), nil)
		return damage{fmt.Sprintf("the hashes of record %d are gone", seq), edited, seq, 0}
	case 10:
		seq := f.swap(bucketHashes)
		return damage{fmt.Sprintf("the hashes of record %d are swapped", seq), edited, seq, 0}
	case 11:
		if f.r.IntN(2) == 0 {
			seq, sealed := f.with(bucketSealed)
			f.put(bucketSealed, seqKey(seq), f.edit(sealed))
			return damage{fmt.Sprintf("the sealed payload of record %d is changed", seq), edited, seq, 0}
		}
		seq, packed := f.with(bucketPayloads)
		changed := f.edit(packed)
		f.put(bucketPayloads, seqKey(seq), changed)
		d := damage{fmt.Sprintf("the payload of record %d is %x instead of %x", seq, changed, packed), edited, seq, 0}
		was, _ := audit.Unpack(packed)
		if is, err := audit.Unpack(changed); err == nil && bytes.Equal(is, was) {
			d.kinds = nil // it means the same
		}
		return d
	case 12:
		bucket := [][]byte{bucketPayloads, bucketSealed}[f.r.IntN(2)]
		seq, _ := f.with(bucket)
		f.put(bucket, seqKey(seq), nil)
		return damage{fmt.Sprintf("of record %d is gone what was in %s", seq, bucket), []string{audit.Removed}, seq, 0}
	case 13:
		bucket := [][]byte{bucketPayloads, bucketSealed}[f.r.IntN(2)]
		seq := f.swap(bucket)
		return damage{fmt.Sprintf("what record %d has in %s is swapped", seq, bucket), edited, seq, 0}
	case 14:
		bucket := [][]byte{bucketPayloads, bucketSealed}[f.r.IntN(2)]
		seq := uint64(1)
		for f.get(bucket, seqKey(seq)) != nil {
			seq = 1 + f.r.Uint64N(f.size)
		}
		_, value := f.with(bucket)
		f.put(bucket, seqKey(seq), value)
		return damage{fmt.Sprintf("record %d has something in %s, too", seq, bucket), edited, seq, 0}
	case 15: // a row that is of no record
		bucket := columns[f.r.IntN(len(columns))]
		seq := f.r.Uint64N(f.size)
		key := append(seqKey(seq), 'x')
		if seq == 0 {
			key = seqKey(0)
		}
		f.put(bucket, key, []byte("x"))
		return damage{fmt.Sprintf("%s has %x", bucket, key), edited, seq + 1, f.size}
	case 16:
		bucket := columns[f.r.IntN(len(columns))]
		f.put(bucket, seqKey(f.size+1), fmt.Appendf(nil, `{"v":1,"seq":%d,"id":"x"}`, f.size+1))
		return damage{fmt.Sprintf("%s has one more", bucket), []string{audit.Edited, audit.Unsigned}, f.size + 1, 0}
	case 17:
		sequence := f.r.Uint64N(2 * f.size)
		if sequence == f.size {
			sequence = 0
		}
		if err := tx.Bucket(bucketRecords).SetSequence(sequence); err != nil {
			f.t.Fatal(err)
		}
		return damage{fmt.Sprintf("the sequence is %d", sequence), edited, 0, 0}
	case 18:
		signed := meta("checkpoint")
		changed := f.edit(signed)
		f.put(bucketMeta, []byte("checkpoint"), changed)
		d := damage{fmt.Sprintf("the checkpoint is %q", changed), []string{audit.Edited, audit.KeyChanged}, 0, 0}
		was, _ := audit.OpenCheckpoint(signed, f.s.signer.verifier)
		if is, err := audit.OpenCheckpoint(changed, f.s.signer.verifier); err == nil && is == was {
			d.kinds = nil // the last letters of base64 have more than one form
		}
		return d
	default:
		public := f.edit(meta("verifier"))
		f.put(bucketMeta, []byte("verifier"), public)
		d := damage{fmt.Sprintf("the public key is %q", public), []string{audit.KeyChanged}, 0, 0}
		if v, err := note.NewVerifier(string(public)); err == nil && v.KeyHash() == f.s.signer.KeyHash() && v.Name() == f.s.signer.Name() {
			d.kinds = nil
		}
		return d
	}
}

// rehash makes all hashes from a record on anew.
func (f *file) rehash(from uint64) {
	var tree audit.Tree
	for seq := uint64(1); seq <= f.size; seq++ {
		var packed []byte
		for _, h := range tree.Append(f.get(bucketRecords, seqKey(seq))) {
			packed = append(packed, h[:]...)
		}
		if seq >= from && !bytes.Equal(f.get(bucketHashes, seqKey(seq)), packed) {
			f.put(bucketHashes, seqKey(seq), packed)
		}
	}
}

// finds checks the first finding, without its text.
func finds(t *testing.T, report audit.Report, kind string, from, to uint64) {
	t.Helper()
	if f := report.Findings; len(f) == 0 || f[0].Kind != kind || f[0].From != from || f[0].To != to {
		t.Errorf("want %s %d..%d first, got %+v", kind, from, to, f)
	}
}

// A log that was put back to an earlier state is whole; a checkpoint that was anchored
// outside shows it, also after the log has gone on.
func TestRolledBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, maker := unsynced(t, path), logtest.New(1)
	defer func() { s.Close() }()
	fill(t, s, maker, 50, 16)
	at50 := checkpoint(t, s)
	s.Close()
	copied := read(path)
	s = unsynced(t, path)
	fill(t, s, maker, 120, 16)
	at120 := checkpoint(t, s)
	s.Close()
	write(t, path, copied, 0o600)
	s = unsynced(t, path)
	if report := verified(t, s, s.signer.verifier, at50); len(report.Findings) > 0 || report.Size != 50 {
		t.Errorf("%+v", report)
	}
	finds(t, verified(t, s, s.signer.verifier, at50, at120), audit.RolledBack, 51, 120)
	fill(t, s, logtest.New(2), 60, 0)
	finds(t, verified(t, s, s.signer.verifier, at50, at120), audit.RolledBack, 61, 120)
	fill(t, s, logtest.New(2), 130, 0)
	finds(t, verified(t, s, s.signer.verifier, at50, at120), audit.Edited, 51, 120)
	if report := verified(t, s, s.signer.verifier, at50); len(report.Findings) > 0 {
		t.Errorf("%+v", report)
	}
}

// Whoever writes the whole log anew needs the key, and then cannot meet the checkpoints
// that were anchored.
func TestWrittenAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := unsynced(t, path)
	defer s.Close()
	fill(t, s, logtest.New(1), 60, 16)
	at60, known := checkpoint(t, s), s.signer.verifier

	folder := t.TempDir()
	other := unsynced(t, filepath.Join(folder, "store.db"))
	fill(t, other, logtest.New(2), 80, 16)
	report := verified(t, other, known)
	finds(t, report, audit.KeyChanged, 0, 0)
	if report.Checkpoints != 0 || report.Findings[0].Text == "" {
		t.Errorf("%+v", report)
	}
	own := other.signer.verifier
	finds(t, verified(t, other, own, at60), audit.KeyChanged, 0, 0)
	if report := verified(t, other, own); len(report.Findings) > 0 {
		t.Errorf("with no other key than its own: %+v", report)
	}
	other.Close()

	// With the same key.
	folder = t.TempDir()
	write(t, filepath.Join(folder, "audit.key"), read(filepath.Join(filepath.Dir(path), "audit.key")), 0o600)
	edit(t, filepath.Join(folder, "store.db"), func(*bbolt.Tx) error { return nil }) // where there is no file, none is begun beside a key
	other = unsynced(t, filepath.Join(folder, "store.db"))
	defer other.Close()
	fill(t, other, logtest.New(2), 80, 16)
	if report := verified(t, other, known); len(report.Findings) > 0 {
		t.Errorf("%+v", report)
	}
	finds(t, verified(t, other, known, at60), audit.Edited, 48, 60) // the anchor in record 48 of the 47 before it agrees with them
}

// What only whoever can write the file could do.
func TestTamperedEnds(t *testing.T) {
	const size = 60
	for _, row := range []struct {
		name     string
		tamper   func(f *file)
		kind     string
		from, to uint64
	}{
		{"records added", func(f *file) {
			f.put(bucketRecords, seqKey(61), audit.Number([]byte(`{"v":1,"seq":0,"id":"a"}`), 61))
			f.put(bucketRecords, seqKey(62), audit.Number([]byte(`{"v":1,"seq":0,"id":"b"}`), 62))
			f.size = 62
			f.rehash(61)
			f.tx.Bucket(bucketRecords).SetSequence(62)
		}, audit.Edited, 0, 0},
		{"records added and not counted", func(f *file) {
			f.put(bucketRecords, seqKey(61), audit.Number([]byte(`{"v":1,"seq":0,"id":"a"}`), 61))
			f.put(bucketRecords, seqKey(62), audit.Number([]byte(`{"v":1,"seq":0,"id":"b"}`), 62))
		}, audit.Unsigned, 61, 62},
		{"an older checkpoint", func(f *file) {
			f.put(bucketMeta, []byte("checkpoint"), f.get(bucketCheckpoints, seqKey(47)))
			f.tx.Bucket(bucketRecords).SetSequence(47)
		}, audit.Unsigned, 48, 60},
		{"the newest record is gone", func(f *file) { f.put(bucketRecords, seqKey(60), nil) }, audit.Removed, 60, 60},
		{"the newest record and its hashes are gone", func(f *file) { f.put(bucketRecords, seqKey(60), nil); f.put(bucketHashes, seqKey(60), nil) }, audit.Removed, 60, 60},
		{"the end is gone, and the newest checkpoint is older", func(f *file) {
			f.put(bucketMeta, []byte("checkpoint"), f.get(bucketCheckpoints, seqKey(15)))
			f.tx.Bucket(bucketRecords).SetSequence(15)
			for seq := uint64(16); seq <= size; seq++ {
				for _, name := range columns {
					f.put(name, seqKey(seq), nil)
				}
			}
		}, audit.RolledBack, 16, 47},
		{"no checkpoint", func(f *file) { f.put(bucketMeta, []byte("checkpoint"), nil) }, audit.Edited, 0, 0},
		{"no public key", func(f *file) { f.put(bucketMeta, []byte("verifier"), nil) }, audit.KeyChanged, 0, 0},
		{"an anchored checkpoint is another", func(f *file) {
			signed := f.get(bucketCheckpoints, seqKey(15))
			f.put(bucketCheckpoints, seqKey(15), bytes.Replace(signed, []byte("\n15\n"), []byte("\n14\n"), 1))
		}, audit.Edited, 0, 0},
		{"what was pruned is not text", func(f *file) {
			f.put(bucketRecords, seqKey(30), []byte(`{"v":1,"seq":30,"type":"log.pruned","pruned":{"records_before":"`))
		}, audit.Edited, 30, 30},
		{"a record says that others were pruned", func(f *file) {
			f.put(bucketRecords, seqKey(30), []byte(`{"v":1,"seq":30,"type":"log.pruned","pruned":{"records_before":10,"payloads_before":10}}`))
			for seq := uint64(1); seq < 10; seq++ {
				f.put(bucketRecords, seqKey(seq), nil)
			}
		}, audit.Edited, 30, 30},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s := unsynced(t, path)
			fill(t, s, logtest.New(1), size, 16)
			f := file{t: t, s: s, size: size}
			f.change(func(*bbolt.Tx) { row.tamper(&f) })
			key := s.signer.verifier
			finds(t, verified(t, s, key), row.kind, row.from, row.to)
			s.Close()
			s, err := Open(path, Options{ReadOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			finds(t, verified(t, s, key), row.kind, row.from, row.to)
		})
	}
}

// A log whose end is not what was signed is not taken up, and thus never signed anew.
func TestTamperedEndIsNotSigned(t *testing.T) {
	for name, tamper := range map[string]func(f *file){
		"the sequence":            func(f *file) { f.tx.Bucket(bucketRecords).SetSequence(59) },
		"the newest record":       func(f *file) { f.put(bucketRecords, seqKey(60), nil) },
		"the newest hash":         func(f *file) { f.put(bucketHashes, seqKey(60), make([]byte, 3*32)) },
		"a hash of the edge":      func(f *file) { f.put(bucketHashes, seqKey(32), make([]byte, 6*32)) },
		"a hash that is too long": func(f *file) { f.put(bucketHashes, seqKey(60), make([]byte, 3*32+1)) },
		"the checkpoint":          func(f *file) { f.put(bucketMeta, []byte("checkpoint"), f.get(bucketCheckpoints, seqKey(47))) },
		"no checkpoint":           func(f *file) { f.put(bucketMeta, []byte("checkpoint"), nil) },
		"the public key":          func(f *file) { f.put(bucketMeta, []byte("verifier"), []byte("log+1+x")) },
		"a record more": func(f *file) {
			f.put(bucketRecords, seqKey(61), []byte(`{"v":1,"seq":61,"id":"x"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s := unsynced(t, path)
			fill(t, s, logtest.New(1), 60, 16)
			f := file{t: t, s: s, size: 60}
			f.change(func(*bbolt.Tx) { tamper(&f) })
			s.Close()
			if s, err := Open(path, Options{}); err == nil {
				s.Close()
				t.Error("it was opened")
			} else if text := err.Error(); !strings.Contains(text, "audit") {
				t.Error(text)
			}
		})
	}
}
