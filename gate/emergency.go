package gate

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"countersign/audit"
)

// Begins reports whether the batch is about something that starts, such as a call or
// a question. What is left ends something, or is for its operators: there should be
// room for that after the store has refused the rest.
func (b *Batch) Begins() bool {
	ends := len(b.Entries) == 0
	for _, e := range b.Entries {
		switch e.Record.Type {
		case audit.ToolIntent, audit.ToolPlanned, audit.ApprovalRequested, audit.ExecStarted, audit.GrantCreated:
			return true
		case audit.ExecOutcome, audit.ExecUnknown, audit.ExecReconciled, audit.ApprovalVoted, audit.ApprovalDecided, audit.GrantRevoked,
			audit.LockAdded, audit.LockRemoved, audit.SessionEnded, audit.ConfigChanged, audit.LogOpened, audit.LogCheckpoint, audit.LogPruned, audit.ClusterSeen:
			ends = true
		}
	}
	return !ends
}

// unstored are the ids of records that the store could not take, and that the gate
// goes on trying to store.
type unstored struct {
	mu  sync.Mutex
	ids []string
}

// retryStoreAtMost is how long at most between two tries to store an outcome.
const retryStoreAtMost = 30 * time.Second

// outcome stores how something ended that was sent. What the store does not take
// goes to the emergency file at once, and is tried again until the server stops;
// later, where set, is called when that succeeds.
func (g *Gate) outcome(ctx context.Context, b Batch, later func()) error {
	b.Entries = split(b.Entries) // once, because each time makes new ids
	err := g.store(ctx, b)
	if err == nil {
		return nil
	}
	if errors.Is(err, ErrConflict) {
		g.keepElsewhere(b.Entries)
		return err // somebody else has moved the operation on: it stays with that
	}
	g.unstored.mu.Lock()
	for _, e := range b.Entries {
		g.unstored.ids = append(g.unstored.ids, e.Record.ID)
	}
	g.unstored.mu.Unlock()
	g.keepElsewhere(b.Entries) // once it is held: who reads the file at once must not import it
	g.work.Go(func() {
		for wait := retryEvery; ; wait = min(2*wait, retryStoreAtMost) {
			select {
			case <-time.After(wait):
			case <-g.background.Done():
				return
			}
			// The ids and the revision are the same: what was stored after all is a conflict.
			err := g.commit(b)
			if err != nil && !errors.Is(err, ErrConflict) {
				continue
			}
			g.unstored.mu.Lock()
			g.unstored.ids = slices.DeleteFunc(g.unstored.ids, func(id string) bool {
				return slices.ContainsFunc(b.Entries, func(e Entry) bool { return e.Record.ID == id })
			})
			g.unstored.mu.Unlock()
			if err == nil {
				g.Log.Info("an outcome that could not be stored is stored now", "op", b.Entries[0].Record.Op)
				if later != nil {
					later()
				}
			}
			return
		}
	})
	return err
}

// keepElsewhere puts what the store cannot take into the emergency file, or else
// into the server's own log. It is masked as it is.
func (g *Gate) keepElsewhere(entries []Entry) {
	err := errors.New("there is no emergency file")
	if g.Emergency != nil {
		err = g.Emergency(entries)
	}
	if err == nil {
		return
	}
	for _, e := range entries {
		record, _ := json.Marshal(e.Record)
		g.Log.Error("an outcome could be stored neither in the audit log nor in the emergency file", "err", err, "record", json.RawMessage(record))
	}
}

// Importing runs f, which adds records from the emergency file, with a function that
// tells which of them the gate itself is still trying to store.
func (g *Gate) Importing(f func(held func(id string) bool) error) error {
	g.unstored.mu.Lock()
	defer g.unstored.mu.Unlock()
	return f(func(id string) bool { return slices.Contains(g.unstored.ids, id) })
}

// Imported is what an import did.
type Imported struct {
	Added int `json:"added"`
	Known int `json:"known"` // the log had them already
	Held  int `json:"held"`  // the server is about to store them by itself
	// Cut says that the last line was cut off, and left out.
	Cut bool `json:"cut,omitempty"`
}
