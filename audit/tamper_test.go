package audit_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign/audit"
	"countersign/audit/logtest"
)

// damage is what was done to an export: what may be said of it, and which records
// must be among those that it is said of.
type damage struct {
	what    string
	kinds   []string
	records []uint64
	export  []byte
}

// 10,000 random edits, removals, swaps and cuts of an exported log are all found, each
// for what it is and where it is, with one checkpoint and the key and nothing else.
// With the race detector, which makes it ten times as slow, they are 1,000.
func TestTamperedExport(t *testing.T) {
	const size, stretch = 120, 24
	log := logtest.NewLog(1)
	log.Fill(logtest.New(1), size, stretch)
	signed, export := log.Checkpoint(), logtest.Export(log.Leaves)
	if report := verify(t, export, log.Verifier, signed); len(report.Findings) > 0 {
		t.Fatal(describe(report.Findings))
	}
	seed, rounds := uint64(time.Now().UnixNano()), 10_000
	t.Logf("the seed is %d", seed)
	if race || testing.Short() {
		rounds = 1000
	}
	var workers sync.WaitGroup
	for worker := range uint64(2) {
		workers.Go(func() {
			r := rand.New(rand.NewPCG(seed, worker))
			for range rounds / 2 {
				d := tamper(r, log.Leaves, export)
				report, err := audit.VerifyExport(bytes.NewReader(d.export), log.Verifier, [][]byte{signed})
				if err != nil {
					t.Errorf("%s: %v", d.what, err)
					continue
				}
				for _, record := range d.records {
					if !slices.ContainsFunc(report.Findings, func(f audit.Finding) bool {
						return slices.Contains(d.kinds, f.Kind) && f.From <= record && record <= f.To && (f.Kind != audit.Edited || f.To-f.From <= 2*stretch)
					}) {
						t.Errorf("seed %d: %s: want %v of record %d, got %d findings%s", seed, d.what, d.kinds, record, len(report.Findings), describe(report.Findings))
					}
				}
				if len(report.Findings) > 3 {
					t.Errorf("seed %d: %s: so many findings%s", seed, d.what, describe(report.Findings))
				}
			}
		})
	}
	workers.Wait()
}

// tamper does one thing to an export.
func tamper(r *rand.Rand, leaves [][]byte, export []byte) damage {
	size := len(leaves)
	lineOf := func(at int) uint64 { return uint64(bytes.Count(export[:at], []byte("\n")) + 1) }
	lines := slices.Clone(leaves)
	i, j := r.IntN(size), r.IntN(size)
	edited := []string{audit.Edited, audit.Reordered} // a number is edited, too
	last := func(n uint64, kinds []string) []string { // without its newline it looks cut
		if n == uint64(size) {
			return append(slices.Clip(kinds), audit.Cut)
		}
		return kinds
	}
	switch r.IntN(11) {
	case 0, 1:
		at := r.IntN(len(export))
		b := byte(r.IntN(256))
		for b == export[at] {
			b = byte(r.IntN(256))
		}
		changed := bytes.Clone(export)
		changed[at] = b
		n := lineOf(at)
		return damage{fmt.Sprintf("byte %d, in line %d, is %q instead of %q", at, n, b, export[at]), last(n, edited), []uint64{n}, changed}
	case 2:
		at := r.IntN(len(export))
		n := lineOf(at)
		return damage{fmt.Sprintf("byte %d, %q in line %d, is gone", at, export[at], n), last(n, edited), []uint64{n}, slices.Delete(bytes.Clone(export), at, at+1)}
	case 3:
		at := r.IntN(len(export))
		b := byte(r.IntN(256))
		// After a newline, what is put in may as well be at the end of the line before; an
		// empty line between two is of the second.
		n := lineOf(at)
		return damage{fmt.Sprintf("%q is put in at byte %d, in line %d", b, at, n), edited, []uint64{n}, slices.Insert(bytes.Clone(export), at, b)}
	case 4: // a bit
		at := r.IntN(len(export))
		changed := bytes.Clone(export)
		changed[at] ^= 1 << r.IntN(8)
		n := lineOf(at)
		return damage{fmt.Sprintf("byte %d, in line %d, is %q instead of %q", at, n, changed[at], export[at]), last(n, edited), []uint64{n}, changed}
	case 5: // lines are gone
		end := min(size, i+1+r.IntN(5))
		kind := audit.Removed
		if end == size {
			kind = audit.Cut
		}
		return damage{fmt.Sprintf("lines %d to %d are gone", i+1, end), []string{kind}, numbers(i+1, end), logtest.Export(slices.Delete(lines, i, end))}
	case 6: // two lines swapped
		if i == j {
			j = (i + 1) % size
		}
		lines[i], lines[j] = lines[j], lines[i]
		kinds, records := []string{audit.Reordered}, []uint64{uint64(i + 1), uint64(j + 1)}
		if i-j == 1 || j-i == 1 { // it is enough that one of two stands elsewhere
			records = []uint64{uint64(max(i, j) + 1)}
		}
		return damage{fmt.Sprintf("lines %d and %d are swapped", i+1, j+1), kinds, records, logtest.Export(lines)}
	case 7: // a line twice
		return damage{fmt.Sprintf("line %d stands before line %d, too", i+1, j+1), []string{audit.Reordered}, numbers(i+1, i+1), logtest.Export(slices.Insert(lines, j, lines[i]))}
	case 8: // a line replaced by another
		if i == j {
			j = (i + 1) % size
		}
		lines[i] = lines[j]
		return damage{fmt.Sprintf("line %d stands in place of line %d", j+1, i+1), []string{audit.Reordered}, numbers(i+1, i+1), logtest.Export(lines)}
	case 9: // cut
		at := r.IntN(len(export))
		n := lineOf(at)
		return damage{fmt.Sprintf("cut at byte %d, in line %d", at, n), []string{audit.Cut}, numbers(int(n), size), export[:at]}
	default: // a record rewritten with care
		at := bytes.Index(lines[i], []byte(`"id":"`)) + 6
		changed := bytes.Clone(lines[i])
		changed[at] = "0123456789abcdef"[(bytes.IndexByte([]byte("0123456789abcdef"), changed[at])+1)%16]
		lines[i] = changed
		return damage{fmt.Sprintf("record %d has another id", i+1), []string{audit.Edited}, numbers(i+1, i+1), logtest.Export(lines)}
	}
}

func numbers(from, to int) (n []uint64) {
	for i := from; i <= to; i++ {
		n = append(n, uint64(i))
	}
	return n
}
