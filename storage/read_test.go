package storage

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"testing"

	"countersign/audit"
	"countersign/gate"
)

// Whoever reads may be slow: the writer goes on meanwhile, also where the file has to
// grow, for which bbolt waits until no transaction is open.
func TestSlowReader(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{record("one"), record("two")}}); err != nil {
		t.Fatal(err)
	}
	large := make([]byte, 4<<20)
	rand.Read(large)
	n := 0
	err := s.Search(&audit.Query{}, 1, 0, false, func(uint64, []byte) error {
		n++
		e := record(fmt.Sprint("while ", n))
		e.Sealed = large
		return s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}})
	})
	if err != nil || n != 2 { // those that came meanwhile are not of this search
		t.Errorf("%d records, %v", n, err)
	}
}

// Who waits for a commit is told of the next one.
func TestCommitted(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	for range 3 {
		first, second := s.Committed(), s.Committed()
		select {
		case <-first:
			t.Fatal("told of a commit that was not")
		default:
		}
		if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{record("one")}}); err != nil {
			t.Fatal(err)
		}
		<-first
		<-second
	}
}
