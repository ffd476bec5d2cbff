package anchors

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
)

// Head is a checkpoint to be put somewhere.
type Head struct {
	audit.Checkpoint
	// Note is the checkpoint with its signatures: the log's own first.
	Note []byte
	// Prove makes the proof that the log has only grown since it had so many
	// records, from 1 to Size.
	Prove func(from uint64) (tlog.TreeProof, error)
}

// Anchor is one place for checkpoints.
type Anchor struct {
	// Name says what it is and where, such as "file:/var/log/checkpoints".
	Name string
	// Put leaves the checkpoint there. It returns signatures for the note, each
	// a line, where the place gives any. It is called once at a time; a call that
	// does not heed ctx is left behind, and the next one waits for it.
	Put func(ctx context.Context, h Head) (signatures []byte, err error)
}

// Log is what is anchored.
type Log interface {
	// Checkpoint is the signed note of the newest state.
	Checkpoint() ([]byte, error)
	tlog.HashReader
}

// Loop anchors a log every so often. What fails is tried again at the next turn.
type Loop struct {
	Source Log
	// Verifier is the log's public key.
	Verifier note.Verifier
	// Every is the time between two turns.
	Every time.Duration
	// Witnesses are asked first, so that what is put into Places has their signatures.
	Witnesses, Places []Anchor
	// Record writes down in the log itself what was anchored, as one record.
	Record func(audit.Anchored) error
	Log    *slog.Logger
	Now    func() time.Time

	head Head
	own  uint64 // records about head that the loop itself has caused
	due  map[string]bool

	mu     sync.Mutex
	states map[string]*Status
	slots  map[string]chan struct{}
}

// Status is how one anchor is.
type Status struct {
	Name string
	// Size is that of the last checkpoint it has, and Time when it got it; zero
	// until there is one since the server started.
	Size uint64
	Time time.Time
	// Error is what it last failed with, empty once it succeeded.
	Error     string
	ErrorTime time.Time
}

const (
	// turnTimeout bounds one turn.
	turnTimeout = time.Minute
	// maxError bounds the text of one failure, in bytes.
	maxError = 500
)

// Run makes a turn at once, so that an anchor that does not work is seen early and
// what a crash left out is made up for, and then one after each time Every, until
// ctx ends. A turn that ctx cuts off leaves no record.
func (l *Loop) Run(ctx context.Context) {
	tick := time.NewTicker(l.Every)
	defer tick.Stop()
	for {
		l.Turn(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Turn anchors the newest checkpoint, if there are records since the last one that
// are not about it; else it tries again what failed with that one. It returns
// before ctx's deadline has long passed, whatever the anchors do.
func (l *Loop) Turn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	if err := l.look(); err != nil {
		l.Log.Error("reading the log's checkpoint, to anchor it", "err", err)
		return
	}
	if len(l.due) == 0 {
		return
	}
	head := l.head
	// Half of the time is kept for the places: a witness that does not answer must
	// not keep the checkpoint out of them.
	deadline, _ := ctx.Deadline()
	asking, cancel := context.WithDeadline(ctx, time.Now().Add(time.Until(deadline)/2))
	defer cancel()
	signatures, failed := l.put(asking, l.Witnesses, head)
	head.Note = slices.Concat(head.Note, signatures)
	_, also := l.put(ctx, l.Places, head)
	if errors.Is(ctx.Err(), context.Canceled) {
		return // the server stops, and makes one turn more
	}
	l.head = head
	l.conclude(append(failed, also...))
}

// look finds out what this turn has to do.
func (l *Loop) look() error {
	signed, err := l.Source.Checkpoint()
	if err != nil {
		return err
	}
	c, err := audit.OpenCheckpoint(signed, l.Verifier)
	if err != nil {
		return err
	}
	if c.Size == 0 || l.due != nil && c.Size <= l.head.Size+l.own {
		return nil
	}
	l.own, l.due = 0, map[string]bool{}
	for _, a := range slices.Concat(l.Witnesses, l.Places) {
		l.due[a.Name] = true
	}
	l.head = Head{Checkpoint: c, Note: signed, Prove: func(from uint64) (tlog.TreeProof, error) {
		if from < 1 || from > c.Size {
			return nil, fmt.Errorf("the log has %d records, not %d", c.Size, from)
		}
		return tlog.ProveTree(int64(c.Size), int64(from), l.Source)
	}}
	return nil
}

// failure is why an anchor did not take a checkpoint.
type failure struct{ name, text string }

// put puts the checkpoint into those of the anchors that do not have it yet, all
// at once.
func (l *Loop) put(ctx context.Context, anchors []Anchor, h Head) (signatures []byte, failed []failure) {
	type result struct {
		signatures []byte
		err        error
	}
	results := make([]chan result, len(anchors))
	for i, a := range anchors {
		if !l.due[a.Name] {
			continue
		}
		results[i] = make(chan result, 1)
		slot := l.slot(a.Name)
		go func() {
			select {
			case slot <- struct{}{}:
				defer func() { <-slot }()
				if ctx.Err() != nil {
					return
				}
				lines, err := a.Put(ctx, h)
				results[i] <- result{lines, err}
			case <-ctx.Done(): // the one before still holds it
			}
		}()
	}
	for i, a := range anchors {
		if results[i] == nil {
			continue
		}
		var r result
		select {
		case r = <-results[i]:
		case <-ctx.Done():
			select {
			case r = <-results[i]: // both were there
			default:
				r.err = errors.New("not done in time")
			}
		}
		if r.err != nil {
			text := audit.MaskText(strings.ToValidUTF8(r.err.Error(), "?"))
			failed = append(failed, failure{a.Name, strings.ToValidUTF8(text[:min(len(text), maxError)], "")})
			continue
		}
		signatures = append(signatures, r.signatures...)
	}
	return signatures, failed
}

// slot lets one Put of an anchor run at a time.
func (l *Loop) slot(name string) chan struct{} {
	if l.slots == nil {
		l.slots = map[string]chan struct{}{}
	}
	if l.slots[name] == nil {
		l.slots[name] = make(chan struct{}, 1)
	}
	return l.slots[name]
}

// conclude tells how a turn went: the log itself, the server's log, which many
// ship elsewhere, and the status.
func (l *Loop) conclude(failed []failure) {
	now, h := l.Now(), l.head
	a := audit.Anchored{Size: h.Size, Note: string(h.Note)}
	for _, f := range failed {
		a.Failed = append(a.Failed, f.name+": "+f.text)
		l.Log.Error("anchoring the log's checkpoint", "anchor", f.name, "err", f.text)
	}
	for _, anchor := range slices.Concat(l.Witnesses, l.Places) {
		i := slices.IndexFunc(failed, func(f failure) bool { return f.name == anchor.Name })
		if l.due[anchor.Name] && i < 0 {
			a.Anchors = append(a.Anchors, anchor.Name)
			delete(l.due, anchor.Name)
		}
		l.mu.Lock()
		s := l.state(anchor.Name)
		switch {
		case i >= 0:
			s.Error, s.ErrorTime = failed[i].text, now
		case slices.Contains(a.Anchors, anchor.Name):
			*s = Status{Name: anchor.Name, Size: h.Size, Time: now}
		}
		l.mu.Unlock()
	}
	if l.own > 0 && len(a.Anchors) == 0 {
		return // what failed before has failed again: that is on record
	}
	// The note stands there whole: with the log's public key it is worth as much
	// as in any other place.
	l.Log.Info("checkpoint", "size", h.Size, "root", base64.StdEncoding.EncodeToString(h.Root[:]), "note", a.Note, "anchors", a.Anchors)
	if err := l.Record(a); err != nil {
		l.Log.Error("storing what was anchored", "err", err)
		return
	}
	l.own++
}

// state is called with mu held.
func (l *Loop) state(name string) *Status {
	if l.states == nil {
		l.states = map[string]*Status{}
	}
	if l.states[name] == nil {
		l.states[name] = &Status{Name: name}
	}
	return l.states[name]
}

// Status says how the anchors are, witnesses first.
func (l *Loop) Status() []Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Status
	for _, a := range slices.Concat(l.Witnesses, l.Places) {
		out = append(out, *l.state(a.Name))
	}
	return out
}
