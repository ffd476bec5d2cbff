package storage

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"countersign/audit"
	"countersign/audit/logtest"
	"countersign/gate"
)

// Search finds what a look at every record finds, in any range and both directions:
// with and without full blocks, after a restart, and where records were pruned.
func TestSearch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := unsynced(t, path)
	defer func() { s.Close() }()
	seed := uint64(time.Now().UnixNano())
	t.Logf("the seed is %d", seed)
	maker, r := logtest.New(seed), rand.New(rand.NewPCG(seed, 2))
	found := 0
	check := func(what string, rounds int) {
		t.Helper()
		type stored struct {
			seq  uint64
			leaf string
			read logtest.Read
		}
		var all []stored
		var sample audit.Record
		if err := s.Records(0, func(seq uint64, leaf []byte) error {
			all = append(all, stored{seq, string(leaf), logtest.NewRead(leaf)})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		for range rounds {
			q := audit.Query{}
			if len(all) > 0 {
				sample = decoded(t, all[r.IntN(len(all))].leaf)
				q = maker.Query(&sample)
			}
			var from, to uint64
			newest := uint64(len(all) + 40)
			switch r.IntN(3) {
			case 0:
				from, to = r.Uint64N(newest+10), r.Uint64N(newest+10)
			case 1:
				from = r.Uint64N(newest/256+1)*256 + r.Uint64N(2)
				to = from + 255
			}
			var want []string
			for _, record := range all {
				if record.seq >= from && (to == 0 || record.seq <= to) && record.read.Matches(&q) {
					want = append(want, record.leaf)
				}
			}
			backwards := r.IntN(2) == 0
			if backwards {
				slices.Reverse(want)
			}
			var got []string
			err := s.Search(&q, from, to, backwards, func(seq uint64, leaf []byte) error {
				if own, _ := audit.Seq(leaf); own != seq {
					t.Errorf("record %d was given as %d", own, seq)
				}
				got = append(got, string(leaf))
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("seed %d, %s: %+v from %d to %d, backwards %v: %d records, want %d, %v", seed, what, q, from, to, backwards, len(got), len(want), err)
			}
			found += len(got)

			// It ends when it is told to.
			stop, n, most := errors.New("enough"), 0, 1+r.IntN(5)
			if err := s.Search(&q, from, to, backwards, func(uint64, []byte) error {
				if n++; n == most {
					return stop
				}
				return nil
			}); n != min(most, len(want)) || errors.Is(err, stop) != (len(want) >= most) {
				t.Fatalf("%+v: %d records of %d, want %d, %v", q, n, len(want), most, err)
			}
		}
	}
	reopen := func() {
		s.Close()
		s = unsynced(t, path)
	}
	check("empty", 3)
	for i, size := range []int{1, 255, 256, 257, 700, 1100} {
		fill(t, s, maker, size, 50)
		check(fmt.Sprint(size), 100)
		if i%2 == 1 {
			reopen()
			check(fmt.Sprint(size, " opened again"), 50)
		}
	}
	fill(t, s, maker, 1300, 50) // a block that was begun before the restart and ended after it
	check("1300", 200)
	for _, before := range []uint64{2, 257, 400} {
		pruneTo(t, s, before, before)
		check(fmt.Sprint("pruned before ", before), 100)
		reopen()
		check(fmt.Sprint("pruned before ", before, " and opened again"), 50)
	}
	if found < 1000 {
		t.Errorf("only %d records were found", found)
	}
}

func decoded(t *testing.T, leaf string) (r audit.Record) {
	t.Helper()
	if err := json.Unmarshal([]byte(leaf), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// A search reads the records of few blocks: those that cannot have what it looks for
// may as well be damaged.
func TestSearchReadsFewRecords(t *testing.T) {
	s := unsynced(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	maker := logtest.New(5)
	fill(t, s, maker, 3000, 0)
	all := leaves(t, s)
	var records []audit.Record
	for _, leaf := range all {
		records = append(records, decoded(t, string(leaf)))
	}
	one := records[1500]
	for name, q := range map[string]audit.Query{
		"an operation":   {Op: one.Op},
		"a session":      {Session: one.Session},
		"a name":         {Session: one.Session, Principal: one.Principal.Username},
		"a text":         {Text: strings.ToUpper(one.Principal.OnBehalfOf), Outcome: one.Outcome},
		"a time":         {Since: one.Time, Until: one.Time.Add(time.Second)},
		"what is absent": {Op: "01a206bd-0319-7440-92a4-fcdb2036f4fb"},
	} {
		w, read, blocks := want(&q), 0, 0
		if err := s.view(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketIndex).ForEach(func(_, b []byte) error {
				if blocks++; w.may(b) {
					read++
				}
				return nil
			})
		}); err != nil {
			t.Fatal(err)
		}
		if blocks != 3000/blockRecords || read > 6 || read == 0 && name != "what is absent" {
			t.Errorf("%s: %d blocks of %d are read", name, read, blocks)
		}
	}
}

func TestSearchOfOddTimes(t *testing.T) {
	s := unsynced(t, filepath.Join(t.TempDir(), "store.db"))
	defer s.Close()
	times := []time.Time{{}, time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0), noon, time.Date(2262, 1, 1, 0, 0, 0, 0, time.UTC)}
	for i := range 2 * blockRecords {
		e := record(fmt.Sprint(i))
		e.Record.Time = times[i*len(times)/(2*blockRecords)]
		if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{e}}); err != nil {
			t.Fatal(err)
		}
	}
	all := leaves(t, s)
	for _, since := range append(times, time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC), noon.Add(1)) {
		for _, until := range append(times, time.Date(1500, 1, 1, 0, 0, 0, 0, time.UTC), noon.Add(1)) {
			q := audit.Query{Since: since, Until: until}
			want, got := 0, 0
			for _, leaf := range all {
				if logtest.NewRead(leaf).Matches(&q) {
					want++
				}
			}
			if err := s.Search(&q, 0, 0, false, func(uint64, []byte) error { got++; return nil }); err != nil || got != want {
				t.Errorf("from %v until %v: %d, want %d, %v", since, until, got, want, err)
			}
		}
	}
	if err := s.Search(&audit.Query{Since: time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC)}, 0, 0, false, nil); err == nil {
		t.Error("a time after the last that the index can have was looked for")
	}
}

// Whoever changes the index can hide records from a search, but not from those who read all.
func TestAllIsReadWithoutTheIndex(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	var entries []gate.Entry
	for i := range 3 * blockRecords {
		entries = append(entries, record(fmt.Sprint(i)))
	}
	if err := s.Commit(t.Context(), gate.Batch{Entries: entries}); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error {
		hides := newBlock() // of no time
		binary.BigEndian.PutUint64(hides, 1<<64-1)
		return tx.Bucket(bucketIndex).Put(blockKey(blockRecords+1), hides)
	}); err != nil {
		t.Fatal(err)
	}
	for _, newestFirst := range []bool{false, true} {
		n := 0
		if err := s.Search(&audit.Query{}, 1, 0, newestFirst, func(uint64, []byte) error { n++; return nil }); err != nil || n != len(entries) {
			t.Errorf("%d records of %d, %v", n, len(entries), err)
		}
	}
}
