package gate

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"countersign/approvals"
	"countersign/audit"
)

// What ends something is told from what begins something by its records.
func TestBegins(t *testing.T) {
	of := func(types ...string) (b Batch) {
		for _, t := range types {
			b.Entries = append(b.Entries, Entry{Record: audit.Record{Type: t}})
		}
		return b
	}
	for _, row := range []struct {
		types  string
		begins bool
	}{
		{"", false}, // what a messenger was told
		{"tool.intent", true}, {"tool.planned", true}, {"call.refused", true}, {"login.refused", true}, {"rate.limited", true}, {"session.started", true},
		{"policy.decided", true}, // of a read that planning made
		{"tool.intent policy.decided exec.started", true}, {"exec.started", true}, {"policy.decided approval.requested", true},
		{"exec.outcome", false}, {"exec.unknown", false}, {"exec.reconciled", false}, {"session.ended", false}, {"config.changed", false},
		{"lock.added", false}, {"lock.removed", false}, {"log.opened", false}, {"log.checkpoint", false}, {"log.pruned", false}, {"grant.revoked", false},
		{"approval.voted approval.decided", false}, {"policy.decided approval.decided", false},
		{"approval.voted approval.decided grant.created", true}, {"approval.decided approval.requested", true}, // asked anew
		{"tool.intent policy.decided exec.outcome", true}, {"something.new", true},
	} {
		b := of(strings.Fields(row.types)...)
		if b.Begins() != row.begins {
			t.Errorf("%s begins something: %v", row.types, b.Begins())
		}
	}
}

// An outcome that cannot be stored goes to the emergency file, is tried again, and is
// left to the gate while it is. Where there is no such file it is in the server's log.
func TestOutcomeElsewhere(t *testing.T) {
	for _, row := range []struct {
		name string
		kept error // by the emergency file
	}{{"kept", nil}, {"not kept", errors.New("no room there either")}} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // it is tried again after seconds
				g := newRig(t, allowAll)
				var log bytes.Buffer
				g.Log = slog.New(slog.NewJSONHandler(&log, nil))
				var elsewhere []Entry
				g.Emergency = func(entries []Entry) error {
					g.Importing(func(held func(string) bool) error {
						if !held("id") {
							t.Error("who reads the file at once could import it")
						}
						return nil
					})
					if row.kept == nil {
						elsewhere = append(elsewhere, entries...)
					}
					return row.kept
				}
				refuse := 2
				g.store.fault = func(Batch) fault {
					if refuse--; refuse >= 0 {
						return full
					}
					return none
				}
				e := Entry{Record: audit.Record{ID: "id", Type: audit.ExecOutcome, Op: "op", Actions: make([]audit.Action, audit.MaxActions+1)}}
				stored := make(chan struct{})
				if err := g.outcome(t.Context(), Batch{Entries: []Entry{e}}, func() { close(stored) }); !errors.Is(err, ErrFull) {
					t.Fatal(err)
				}
				held := func() (yes bool) {
					g.Importing(func(held func(string) bool) error { yes = held("id"); return nil })
					return yes
				}
				if !held() {
					t.Error("it could be imported while it is tried again")
				}
				<-stored
				if held() {
					t.Error("it is held when it is stored")
				}
				records := g.store.all()
				records = records[len(records)-2:] // each with the id that it has elsewhere
				if row.kept == nil && (len(elsewhere) != 2 || elsewhere[0].Record.ID != records[0].ID || elsewhere[1].Record.ID != records[1].ID) {
					t.Errorf("elsewhere are %+v", elsewhere)
				}
				if inLog := strings.Contains(log.String(), `"record":{"v":0,"seq":0,"id":"id"`); inLog != (row.kept != nil) {
					t.Errorf("in the server's log: %s", log.String())
				}
			})
		})
	}
}

// While the log is full, nothing is sent, reads neither; approved operations wait.
func TestFullLog(t *testing.T) {
	r := newRig(t, askAlways)
	asked := r.scale(5)
	reads := newRig(t, allowAll)
	reads.Room = func() error { return ErrFull }
	reads.store.fault = func(Batch) fault { return full }
	for _, call := range []func() Result{func() Result { return reads.scale(5) }, func() Result {
		return reads.call("get_resource", `{"kind":"configmap","namespace":"shop","name":"settings"}`)
	}} {
		if got := call(); got.Status != Failed || got.Reason != fullReason || got.NextStep != fullStep {
			t.Errorf("%+v", got)
		}
	}
	if n := reads.cluster.asked(); n > 1 { // what it serves, which planning may ask
		t.Errorf("the cluster was asked %d times", n)
	}

	tried := make(chan string, 100)
	var room atomic.Bool
	r.Room = func() error {
		if room.Load() {
			return nil
		}
		tried <- "room"
		return ErrFull
	}
	r.store.mu.Lock()
	r.store.fault = func(b Batch) fault {
		if b.Begins() && !room.Load() {
			tried <- "a commit"
			return full
		}
		return none
	}
	r.store.mu.Unlock()
	looked := r.cluster.asked()
	r.approve(asked.Op)
	if first, asked := <-tried, r.cluster.asked(); first != "room" || asked != looked {
		t.Errorf("what cannot be begun led to %s, and the cluster was asked %d times", first, asked-looked)
	}
	r.wantSent()
	room.Store(true)
	r.reaches(asked.Op, approvals.Succeeded)
}
