package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// What can be wrong with a log.
const (
	Edited     = "edited"      // a record, a hash, a payload or a checkpoint is not what it was
	Removed    = "removed"     // a record or a payload is missing
	Reordered  = "reordered"   // a record does not stand in its place, or stands there twice
	Cut        = "cut"         // records at the end are missing
	RolledBack = "rolled_back" // the log was longer when a checkpoint of it was anchored
	Unsigned   = "unsigned"    // records come after the newest checkpoint
	KeyChanged = "key_changed" // a checkpoint is signed with another key
)

// Finding is something wrong with a log, and where: at the records From to To, by
// sequence number, or at a checkpoint where they are 0.
type Finding struct {
	Kind string `json:"kind"`
	From uint64 `json:"from,omitempty"`
	To   uint64 `json:"to,omitempty"`
	Text string `json:"text"`
}

// Report is what a verification found. The log is as it was signed when there are
// no findings.
type Report struct {
	Origin string `json:"origin"`
	// First and Size are the sequence numbers of the first record that is there, more
	// than 1 after retention took some out, and of the newest.
	First uint64 `json:"first"`
	Size  uint64 `json:"size"`
	// Root is of the whole log, base64.
	Root tlog.Hash `json:"root"`
	// Checkpoints counts those that the log was found to be consistent with, the
	// newest among them.
	Checkpoints int `json:"checkpoints"`
	// Unchecked counts those of a time of which only pruned records tell.
	Unchecked int `json:"unchecked,omitempty"`
	// Retention is what the newest record of it says was taken out; nil where there is
	// none. That it had to be, who has the log's key can say as well.
	Retention *Retention `json:"retention,omitempty"`
	Findings  []Finding  `json:"findings,omitempty"`
	// More counts findings that are not listed.
	More int `json:"more,omitempty"`
}

// Retention is what was taken out of a log, all payloads before one record and all
// records before another, as the record Seq says, and when.
type Retention struct {
	PayloadsBefore uint64    `json:"payloads_before,omitempty"`
	RecordsBefore  uint64    `json:"records_before,omitempty"`
	Seq            uint64    `json:"seq"`
	Time           time.Time `json:"time"`
}

// RetentionOf is what a record of type log.pruned says, nil of another one.
func RetentionOf(r *Record) *Retention {
	if r.Type != LogPruned || r.Pruned == nil {
		return nil
	}
	return &Retention{r.Pruned.PayloadsBefore, r.Pruned.RecordsBefore, r.Seq, r.Time}
}

// maxFindings bounds how many are listed.
const maxFindings = 100

// Verification checks a log, record by record from the first on, against signed
// checkpoints of it. It keeps no more of the log than its tree's edge.
type Verification struct {
	report      Report
	tree        Tree
	checkpoints []Checkpoint // by size; those before have been looked at
	good        uint64       // the size up to which checkpoints agree
	lost        bool         // the tree can no longer be compared
}

// NewVerification is a verification against checkpoints that are signed with the
// key. Those that are not are findings.
func NewVerification(key note.Verifier, signed [][]byte) *Verification {
	v := &Verification{report: Report{Origin: key.Name(), First: 1}}
	for _, s := range signed {
		c, err := OpenCheckpoint(s, key)
		switch {
		case errors.Is(err, ErrOtherKey):
			v.find(KeyChanged, 0, 0, "a checkpoint is signed with another key than %s: %s", key.Name(), firstLines(s))
		case err != nil:
			v.find(Edited, 0, 0, "a checkpoint: %v: %s", err, firstLines(s))
		default:
			v.checkpoints = append(v.checkpoints, c)
		}
	}
	v.expect()
	return v
}

// expect adds checkpoints whose signatures are known to be good.
func (v *Verification) expect(more ...Checkpoint) {
	v.checkpoints = append(v.checkpoints, more...)
	slices.SortStableFunc(v.checkpoints, func(a, b Checkpoint) int { return cmp.Compare(a.Size, b.Size) })
	v.compare()
}

// firstLines names a checkpoint that cannot be read.
func firstLines(signed []byte) string {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	return fmt.Sprintf("%.200q", text)
}

// Find adds a finding about one record.
func (v *Verification) Find(kind string, seq uint64, format string, args ...any) {
	v.find(kind, seq, seq, format, args...)
}

// FindAll adds a finding about the records from to to.
func (v *Verification) FindAll(kind string, from, to uint64, format string, args ...any) {
	v.find(kind, from, to, format, args...)
}

func (v *Verification) find(kind string, from, to uint64, format string, args ...any) {
	if len(v.report.Findings) == maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, Finding{kind, from, to, fmt.Sprintf(format, args...)})
}

// Pruned begins the log after records that retention took out: edge stands for them.
func (v *Verification) Pruned(before uint64, edge []tlog.Hash) {
	v.tree = NewTree(before-1, edge)
	v.report.First, v.good = before, before-1
	for len(v.checkpoints) > 0 && v.checkpoints[0].Size < before-1 {
		v.checkpoints = v.checkpoints[1:]
		v.report.Unchecked++
	}
	v.compare()
}

// Leaf takes the next record.
func (v *Verification) Leaf(leaf []byte) {
	v.tree.Append(leaf)
	v.compare()
}

// Stored takes the next record as a store has it: the leaf, nil where retention took
// it out, and the hashes beside it.
func (v *Verification) Stored(leaf []byte, pruned bool, hashes []tlog.Hash) {
	seq := v.tree.Size() + 1
	whole := len(hashes) == bits.TrailingZeros64(seq)+1
	switch {
	case leaf == nil && pruned:
	case leaf == nil:
		v.find(Removed, seq, seq, "record %d is missing", seq)
	default:
		if own, ok := Seq(leaf); !ok {
			v.find(Edited, seq, seq, "record %d does not begin as records do", seq)
		} else if own != seq {
			v.find(Reordered, seq, seq, "record %d says that it is record %d", seq, own)
		} else if whole && tlog.RecordHash(leaf) != hashes[0] {
			v.find(Edited, seq, seq, "record %d is not what its hash is of", seq)
		}
	}
	var known []tlog.Hash
	switch {
	case whole:
		known = v.tree.AppendHash(hashes[0])
	case leaf != nil:
		v.find(Edited, seq, seq, "the hashes of record %d are missing", seq)
		v.tree.Append(leaf)
	default:
		v.find(Removed, seq, seq, "record %d and its hashes are missing", seq)
		v.tree.AppendHash(tlog.Hash{})
		v.lost = true
	}
	for level := 1; level < len(known); level++ {
		if known[level] != hashes[level] {
			v.find(Edited, seq-1<<level+1, seq, "a hash of the records %d to %d is not what they make", seq-1<<level+1, seq)
			break
		}
	}
	v.compare()
}

// compare looks at the checkpoints of the size that has been reached.
func (v *Verification) compare() {
	for len(v.checkpoints) > 0 && v.checkpoints[0].Size == v.tree.Size() {
		c := v.checkpoints[0]
		v.checkpoints = v.checkpoints[1:]
		switch {
		case v.lost:
		case c.Root == v.tree.Root():
			v.good = c.Size
			v.report.Checkpoints++
		case c.Size == v.good:
			v.find(Edited, 0, 0, "a checkpoint of %d records has another root than what these records make: the key has signed two logs", c.Size)
		default:
			v.find(Edited, v.good+1, c.Size, "of the records %d to %d at least one is not what was signed", v.good+1, c.Size)
			v.lost = true
		}
	}
}

// Report ends the verification. kind is what is to be said of checkpoints that are of
// more records than there are, Cut or RolledBack.
func (v *Verification) Report(kind string) Report {
	size := v.tree.Size()
	v.report.Size, v.report.Root = size, v.tree.Root()
	if n := len(v.checkpoints); n > 0 && !v.lost {
		last := v.checkpoints[n-1].Size
		if kind == RolledBack {
			v.find(kind, size+1, last, "the log has %d records, and a checkpoint was signed when it had %d", size, last)
		} else {
			v.find(kind, size+1, last, "the records %d to %d are missing at the end", size+1, last)
		}
	} else if n == 0 && !v.lost && v.good < size {
		v.find(Unsigned, v.good+1, size, "no checkpoint is of the records %d to %d: take a newer checkpoint, or they were added by somebody else", v.good+1, size)
	}
	if v.report.Checkpoints == 0 && len(v.report.Findings) == 0 {
		v.find(Unsigned, 0, 0, "there is no checkpoint to check the log against")
	}
	return v.report
}

// VerifyExport verifies an exported log, JSONL, against checkpoints of it that were
// got otherwise. Checkpoints that the log itself tells of help to say where it was
// edited. It reads the log twice.
func VerifyExport(log io.ReadSeeker, key note.Verifier, signed [][]byte) (Report, error) {
	// What the log says of itself counts for nothing that the checkpoints do not
	// confirm: a record is under the root like every other.
	inner := map[Checkpoint]bool{}
	var gone Pruned
	var retention *Retention
	var first uint64
	err := eachLine(log, func(n int, leaf []byte, _ bool) error {
		if n == 1 {
			first, _ = Seq(leaf)
		}
		if !bytes.Contains(leaf, []byte(`"type":"log.`)) {
			return nil
		}
		var r Record
		if broken := json.Unmarshal(leaf, &r); broken != nil {
			return nil //nolint:nilerr // it is found when the lines are looked at one by one
		}
		if c := r.Checkpoint; c != nil && r.Type == LogCheckpoint {
			if c, err := OpenCheckpoint([]byte(r.Checkpoint.Note), key); err == nil {
				inner[c] = true
			}
		}
		if said := RetentionOf(&r); said != nil {
			retention = said
		}
		// The export begins where the last of what was pruned ends; there may have
		// been more since it began.
		if p := r.Pruned; p != nil && r.Type == LogPruned && gone.RecordsBefore <= p.RecordsBefore && p.RecordsBefore <= first &&
			p.RecordsBefore > 1 && len(p.Edge) == bits.OnesCount64(p.RecordsBefore-1) {
			gone = *p
		}
		return nil
	})
	if err != nil {
		return Report{}, err
	}
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		return Report{}, err
	}
	v := NewVerification(key, signed)
	v.report.Retention = retention
	if len(v.checkpoints) == 0 && v.report.Checkpoints == 0 {
		v.find(Unsigned, 0, 0, "there is no checkpoint to check the log against")
		return v.report, nil
	}
	v.expect(slices.Collect(maps.Keys(inner))...)
	if gone.RecordsBefore > 0 {
		v.Pruned(gone.RecordsBefore, gone.Edge)
	}
	o := order{v: v, next: v.tree.Size() + 1}
	if n := len(v.checkpoints); n > 0 {
		o.top = v.checkpoints[n-1].Size
	}
	if err := eachLine(log, o.line); err != nil {
		return Report{}, err
	}
	o.end()
	return v.Report(Cut), nil
}

// order finds what is missing from the lines of a log, and what does not stand in
// its place. What a line that does not fit means is told by the one that follows.
type order struct {
	v    *Verification
	next uint64 // the record that is expected
	top  uint64 // the newest record that a checkpoint is of
	// other is a line with another number than was expected, if its line is not 0.
	other struct {
		line int
		seq  uint64
	}
	// broken is how many lines were no records, and broken.line the first of them.
	broken struct{ line, lines int }
	gaps   []Finding       // what is missing so far
	moved  map[uint64]bool // records that stand in other places
}

func (o *order) line(n int, leaf []byte, whole bool) error {
	seq, ok := Seq(leaf)
	switch {
	case !whole:
		o.settle(0)
		last := max(o.next, o.top)
		o.v.find(Cut, o.next, last, "the log ends in the middle of line %d, which is record %d", n, o.next)
		o.v.lost = true
		return nil
	case !ok || !json.Valid(leaf):
		o.settleOther(0)
		if o.broken.lines++; o.broken.lines == 1 {
			o.broken.line = n
		}
		return nil
	}
	o.settle(seq)
	if seq == o.next {
		o.v.Leaf(leaf)
		o.next++
	} else {
		o.other.line, o.other.seq = n, seq
	}
	return nil
}

// settle says what the lines before this one were, which is of record seq, or 0 at
// the end.
func (o *order) settle(seq uint64) {
	o.settleOther(seq)
	if o.broken.lines == 0 {
		return
	}
	to := o.next
	switch {
	case seq > o.next:
		to = seq - 1
	case seq == 0: // nothing good follows
		to = max(to, o.top)
	}
	o.v.find(Edited, o.next, to, "%d lines from line %d on are not records; record %d is expected there", o.broken.lines, o.broken.line, o.next)
	o.v.lost = true
	if seq != o.next { // else they were put in between
		o.next = to + 1
	}
	o.broken.lines = 0
}

func (o *order) settleOther(seq uint64) {
	line, other := o.other.line, o.other.seq
	if line == 0 {
		return
	}
	o.other.line = 0
	o.v.lost = true
	switch {
	case seq == o.next+1, seq == 0 && o.next <= o.top && (other < o.next || other > o.top):
		o.v.find(Reordered, o.next, o.next, "line %d says that it is record %d, and record %d is expected there", line, other, o.next)
		o.move(other)
		o.next++
	case seq == o.next, other < o.next, o.next > o.top:
		o.v.find(Reordered, other, other, "record %d stands in line %d, after record %d", other, line, o.next-1)
		o.move(other)
	default:
		if len(o.gaps) < maxFindings {
			o.gaps = append(o.gaps, Finding{From: o.next, To: other - 1})
		}
		o.next = other + 1
	}
}

func (o *order) move(seq uint64) {
	if o.moved == nil {
		o.moved = map[uint64]bool{}
	}
	if len(o.moved) < maxFindings {
		o.moved[seq] = true
	}
}

func (o *order) end() {
	o.settle(0)
	for _, gap := range o.gaps {
		text := fmt.Sprintf("the records %d to %d are missing", gap.From, gap.To)
		single := gap.From == gap.To
		if single && o.moved[gap.From] {
			continue // it is there
		}
		if single {
			text = fmt.Sprintf("record %d is missing", gap.From)
		} else if gap.From == 1 {
			text += ": an export of a part of the log cannot be checked, only one from its first record on"
		}
		o.v.find(Removed, gap.From, gap.To, "%s", text)
	}
}

// eachLine calls f with each line, by number; the last one may not be whole. A line
// that is longer than records are is given without its end.
func eachLine(r io.Reader, f func(n int, line []byte, whole bool) error) error {
	lines := bufio.NewReaderSize(r, MaxLeaf+1)
	for n := 1; ; n++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case err == nil:
			if err := f(n, line[:len(line)-1], true); err != nil {
				return err
			}
		case errors.Is(err, bufio.ErrBufferFull):
			if err := f(n, line, true); err != nil {
				return err
			}
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = lines.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		case errors.Is(err, io.EOF):
			if len(line) > 0 {
				return f(n, line, false)
			}
			return nil
		default:
			return err
		}
	}
}
