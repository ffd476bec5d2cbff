package anchors

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/audit"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// newLoop anchors l; what is recorded becomes a record of it, as with the real one.
func newLoop(t *testing.T, l *testLog) (loop *Loop, recorded *[]audit.Anchored, log *bytes.Buffer) {
	recorded, log = new([]audit.Anchored), new(bytes.Buffer)
	return &Loop{
		Source: l, Verifier: l.verifier, Every: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil)), Now: func() time.Time { return noon },
		Record: func(a audit.Anchored) error {
			*recorded = append(*recorded, a)
			l.add(t, "log.checkpoint")
			return nil
		},
	}, recorded, log
}

// place is an anchor that fails as long as fail says.
type place struct {
	notes []string
	fail  error
}

func (p *place) anchor(name string) Anchor {
	return Anchor{Name: name, Put: func(_ context.Context, h Head) ([]byte, error) {
		if p.fail != nil {
			return nil, p.fail
		}
		p.notes = append(p.notes, string(h.Note))
		return nil, nil
	}}
}

// A log is anchored once for what is new in it; that it was anchored is nothing new.
func TestTurns(t *testing.T) {
	l := newLog(t, "a", "b")
	loop, recorded, log := newLoop(t, l)
	path := filepath.Join(t.TempDir(), "checkpoints")
	w, witness := startWitness(t, l)
	loop.Witnesses, loop.Places = []Anchor{witness}, []Anchor{File(path, l.verifier)}
	names := []string{witness.Name, "file:" + path}
	if got := loop.Status(); len(got) != 2 || got[1] != (Status{Name: names[1]}) {
		t.Errorf("before the first turn: %+v", got)
	}
	for range 3 {
		loop.Turn(t.Context())
	}
	if len(*recorded) != 1 || (*recorded)[0].Size != 2 || !slices.Equal((*recorded)[0].Anchors, names) || (*recorded)[0].Failed != nil {
		t.Fatalf("%+v", *recorded)
	}
	l.add(t, "c")
	for range 3 {
		loop.Turn(t.Context())
	}
	if got := opens(t, read(t, path), l.verifier); !slices.Equal(got, []uint64{2, 4}) || len(*recorded) != 2 || w.Seen("log.example") != 4 {
		t.Errorf("the file has %d; %d records", got, len(*recorded))
	}
	// What the file and the record have is signed by the witness as well.
	if note := (*recorded)[1].Note; !strings.Contains(note, "\n— witness.example/w1 ") || !strings.HasSuffix(string(read(t, path)), "\n"+note+"\n") {
		t.Errorf("%q", note)
	}
	if want := []Status{{Name: names[0], Size: 4, Time: noon}, {Name: names[1], Size: 4, Time: noon}}; !reflect.DeepEqual(loop.Status(), want) {
		t.Errorf("%+v", loop.Status())
	}
	if text := log.String(); strings.Count(text, "msg=checkpoint size=") != 2 || !strings.Contains(text, "size=4 root=") || strings.Contains(text, "ERROR") {
		t.Error(text)
	}
}

// One that fails keeps nobody else from it, and is asked again until it has it.
func TestFailures(t *testing.T) {
	l := newLog(t, "a", "b")
	loop, recorded, log := newLoop(t, l)
	one, two := &place{fail: errors.New("no route: password=hunter2hunter2 " + strings.Repeat("x", 1000))}, &place{}
	w, witness := startWitness(t, l)
	w.Close()
	loop.Witnesses, loop.Places = []Anchor{witness}, []Anchor{one.anchor("one"), two.anchor("two")}
	for range 3 {
		loop.Turn(t.Context())
	}
	if len(*recorded) != 1 || len(two.notes) != 1 {
		t.Fatalf("%d records, %d notes", len(*recorded), len(two.notes))
	}
	first := (*recorded)[0]
	if !slices.Equal(first.Anchors, []string{"two"}) || len(first.Failed) != 2 || !strings.HasPrefix(first.Failed[0], witness.Name+": Post ") || !strings.HasPrefix(first.Failed[1], "one: no route") {
		t.Errorf("%+v", first)
	}
	if strings.Contains(first.Failed[1]+log.String(), "hunter2") || len(first.Failed[1]) > 600 {
		t.Errorf("%q", first.Failed[1])
	}
	if got := loop.Status(); got[1].Error == "" || got[1].ErrorTime != noon || got[1].Size != 0 || got[2].Error != "" || got[2].Size != 2 {
		t.Errorf("%+v", got)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 6 {
		t.Errorf("%d errors in the log for 3 turns with 2 failures", n)
	}
	one.fail = nil
	for range 3 {
		loop.Turn(t.Context())
	}
	if len(*recorded) != 2 || (*recorded)[1].Size != 2 || !slices.Equal((*recorded)[1].Anchors, []string{"one"}) || len(one.notes) != 1 || len(two.notes) != 1 {
		t.Errorf("%+v", *recorded)
	}
	if got := loop.Status(); got[1].Error != "" || got[1].Size != 2 {
		t.Errorf("%+v", got)
	}
}

// One that hangs is left behind, and is not started again while it does.
func TestHanging(t *testing.T) {
	l := newLog(t, "a", "b")
	loop, recorded, _ := newLoop(t, l)
	calls, release := make(chan struct{}, 10), make(chan struct{})
	hanging := Anchor{Name: "hanging", Put: func(context.Context, Head) ([]byte, error) {
		calls <- struct{}{}
		<-release
		return nil, nil
	}}
	p := &place{}
	loop.Witnesses, loop.Places = []Anchor{hanging}, []Anchor{p.anchor("place")}
	turn := func() {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		loop.Turn(ctx)
	}
	turn()
	turn()
	if len(calls) != 1 || len(p.notes) != 1 || len(*recorded) != 1 || !slices.Equal((*recorded)[0].Failed, []string{"hanging: not done in time"}) {
		t.Errorf("%d calls, %d notes, %+v", len(calls), len(p.notes), *recorded)
	}
	close(release)
	loop.Turn(t.Context())
	if len(*recorded) != 2 || !slices.Equal((*recorded)[1].Anchors, []string{"hanging"}) {
		t.Errorf("%+v", *recorded)
	}
}

// Run anchors at once. A turn that the server's end cuts off leaves no record, and
// the last one does all of it.
func TestEnd(t *testing.T) {
	l := newLog(t, "a", "b")
	loop, recorded, _ := newLoop(t, l)
	ctx, stop := context.WithCancel(t.Context())
	slow := Anchor{Name: "slow", Put: func(ctx context.Context, h Head) ([]byte, error) {
		stop() // while it is under way, the first time
		return nil, ctx.Err()
	}}
	p := &place{}
	loop.Witnesses, loop.Places = []Anchor{slow}, []Anchor{p.anchor("place")}
	loop.Run(ctx)
	if len(*recorded) != 0 {
		t.Errorf("%+v", *recorded)
	}
	l.add(t, "session.ended")
	loop.Turn(t.Context())
	if len(*recorded) != 1 || (*recorded)[0].Size != 3 || len((*recorded)[0].Anchors) != 2 {
		t.Errorf("%+v", *recorded)
	}
}

// A record that cannot be stored is tried again; an empty log is not anchored.
func TestRecordFails(t *testing.T) {
	l := newLog(t)
	loop, recorded, log := newLoop(t, l)
	p := &place{}
	loop.Places = []Anchor{p.anchor("place")}
	loop.Turn(t.Context())
	l.add(t, "a")
	record := loop.Record
	loop.Record = func(audit.Anchored) error { return errors.New("poisoned") }
	loop.Turn(t.Context())
	if !strings.Contains(log.String(), "storing what was anchored") || len(p.notes) != 1 {
		t.Error(log.String())
	}
	loop.Record = record
	l.add(t, "b")
	loop.Turn(t.Context())
	if len(*recorded) != 1 || (*recorded)[0].Size != 2 {
		t.Errorf("%+v", *recorded)
	}
}
