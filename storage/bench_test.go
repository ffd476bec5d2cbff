package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/audit"
	"countersign/audit/logtest"
	"countersign/gate"
)

// BenchmarkAppend is of one record each, by so many writers. x-fsync is how many times
// as fast that is as writing a file of the same lines with an fsync after each: the
// median of rounds of both, because a disk that others use is not equally fast for long.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(writers, " writers"), func(b *testing.B) {
			s, err := Open(filepath.Join(b.TempDir(), "store.db"), Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			file, err := os.Create(filepath.Join(b.TempDir(), "lines"))
			if err != nil {
				b.Fatal(err)
			}
			defer file.Close()
			maker := logtest.New(1)
			entries := make([]gate.Entry, b.N)
			for i := range entries {
				entries[i].Record = maker.Next().Record
				entries[i].Record.Payload = nil
			}
			leaf, err := audit.Leaf(&entries[0].Record)
			if err != nil {
				b.Fatal(err)
			}
			var ratios []float64
			b.ReportAllocs()
			b.ResetTimer()
			for entries := range slices.Chunk(entries, max(b.N/20, writers)) {
				b.StopTimer()
				fsync := each(b, 20, func() error {
					_, err := file.Write(append(leaf, '\n'))
					return errors.Join(err, file.Sync())
				})
				b.StartTimer()
				var next atomic.Int64
				var group sync.WaitGroup
				start := time.Now()
				for range writers {
					group.Go(func() {
						for i := int(next.Add(1)) - 1; i < len(entries); i = int(next.Add(1)) - 1 {
							if err := s.Commit(context.Background(), gate.Batch{Entries: entries[i : i+1]}); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				group.Wait()
				ratios = append(ratios, float64(fsync)*float64(len(entries))/float64(time.Since(start)))
			}
			slices.Sort(ratios)
			b.ReportMetric(ratios[len(ratios)/2], "x-fsync")
		})
	}
}

func each(b *testing.B, n int, f func() error) time.Duration {
	b.Helper()
	start := time.Now()
	for range n {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start) / time.Duration(n)
}

const million = 1_000_000

// rare is a resource that three of the million records are about.
const rare = "certificates.k8s.io/v1/certificatesigningrequests"

// BenchmarkSearch searches a log of a million records.
func BenchmarkSearch(b *testing.B) {
	folder := b.TempDir()
	path := filepath.Join(folder, "store.db")
	s, err := Open(path, Options{Origin: "log.example.com"})
	if err != nil {
		b.Fatal(err)
	}
	s.db.NoSync = true
	maker, start := logtest.New(1), time.Now()
	var middle audit.Record
	for n := 0; n < million; {
		entries := make([]gate.Entry, 5000)
		for i := range entries {
			made := maker.Next()
			n++
			if n == million/2+1 {
				middle = made.Record
			}
			if n == 100_001 || n == 500_001 || n == 900_001 {
				made.Record.Actions = []audit.Action{{Cluster: "production", Verb: "patch", Resource: rare, Subresource: "approval", Name: "node-csr"}}
			}
			entries[i] = gate.Entry{Record: made.Record, Payload: made.Payload}
		}
		if n%50_000 == 0 {
			entries[len(entries)-1] = anchored(b, s, entries[0].Record.Time)
		}
		if err := s.Commit(b.Context(), gate.Batch{Entries: entries}); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(s.db.Sync(), s.Close()); err != nil {
		b.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("made in %v, %d MB", time.Since(start).Round(time.Second), info.Size()>>20)

	if s, err = Open(path, Options{}); err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for _, row := range []struct {
		name  string
		query audit.Query
		most  int // newest
		least int // are found
	}{
		{"session", audit.Query{Session: middle.Session}, 50, 5},
		{"operation", audit.Query{Op: middle.Op}, 50, 2},
		{"rare resource", audit.Query{Resource: rare}, 50, 3},
		{"common resource", audit.Query{Resource: "apps/v1/deployments"}, 50, 50},
		{"common resource, plural", audit.Query{Resource: "deployments"}, 50, 50},
		{"name and namespace", audit.Query{Namespace: logtest.Common, Name: "app-7"}, 50, 50},
		{"principal and failure", audit.Query{Principal: "system:serviceaccount:agents:agent-7", Outcome: audit.Failure}, 50, 50},
		{"an hour in the middle", audit.Query{Since: middle.Time, Until: middle.Time.Add(time.Hour), Outcome: audit.Denied}, 50, 50},
		{"absent", audit.Query{Session: "nobody's"}, 50, 0},
		{"text", audit.Query{Text: "node-csr"}, 50, 3},
	} {
		b.Run(row.name, func(b *testing.B) {
			enough := errors.New("enough")
			for b.Loop() {
				found := 0
				err := s.Search(&row.query, 0, 0, true, func(uint64, []byte) error {
					if found++; found == row.most {
						return enough
					}
					return nil
				})
				if err != nil && !errors.Is(err, enough) || found < row.least {
					b.Fatalf("%d found, %v", found, err)
				}
			}
		})
	}
}
