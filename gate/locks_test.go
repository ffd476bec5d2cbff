package gate

import (
	"errors"
	"strings"
	"testing"
	"time"

	"countersign/approvals"
	"countersign/audit"
)

const askAll = `  - {name: ask, effect: require_approval, match: {principals: {groups: [agents]}}, approval: {approvers: [sre], expires: 1h}}`

func (r *rig) lock(l approvals.Lock) approvals.Lock {
	r.t.Helper()
	l.Reason = "incident 4711"
	set, err := r.Lock(l, sre("bea"))
	if err != nil {
		r.t.Fatal(err)
	}
	return set.Lock
}

// What waits is withdrawn, a vote comes too late, and nobody can ask again until
// the lock is removed.
func TestLockWithdraws(t *testing.T) {
	r := newRig(t, askAll)
	waits := r.scale(5)
	l := r.lock(approvals.Lock{Namespace: "shop"})
	if op := r.reaches(waits.Op, approvals.Cancelled); !strings.Contains(op.Reason, "incident 4711") {
		t.Errorf("withdrawn because %q", op.Reason)
	}
	if _, err := r.Vote(waits.Op, sre("carl"), approvals.Ballot{Approve: true}); !errors.Is(err, approvals.ErrNotPending) {
		t.Errorf("a vote after it: %v", err)
	}
	if got := r.scale(6); got.Status != Denied || got.Rule != "lock:"+l.ID || got.NextStep != lockedStep {
		t.Errorf("a call after it: %+v", got)
	}
	if got := r.call("get_operation", `{"op":"`+waits.Op+`"}`); !strings.Contains(got.Reason, "incident 4711") {
		t.Errorf("the caller sees %+v", got)
	}
	if _, err := r.Unlock(l.ID, sre("carl")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Unlock(l.ID, sre("carl")); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if got := r.scale(6); got.Status != Pending {
		t.Errorf("a call after it was removed: %+v", got)
	}
	r.wantSent()
	var types []string
	for _, e := range r.store.entries {
		if e.Record.Type == audit.LockAdded || e.Record.Type == audit.LockRemoved {
			types = append(types, e.Record.Type+" by "+strings.Join(e.Record.Approval.By, ","))
		}
	}
	if got := strings.Join(types, "; "); got != "lock.added by bea (local:bea); lock.removed by carl (local:carl)" {
		t.Errorf("records: %s", got)
	}
}

// A lock outlives a restart, beats an allowance and a grant, and ends by itself.
func TestLockBeatsPolicy(t *testing.T) {
	r := newRig(t, allowAll)
	r.lock(approvals.Lock{Principal: "bot", Expires: noon.Add(time.Hour)})
	r.restart()
	if got := r.scale(5); got.Status != Denied {
		t.Errorf("a change: %+v", got)
	}
	if got := r.call("get_resource", `{"kind":"Deployment","name":"web","namespace":"shop"}`); got.Status != Denied {
		t.Errorf("a read: %+v", got)
	}
	r.wantSent()
	r.later(time.Hour)
	if got := r.scale(5); got.Status != Succeeded {
		t.Errorf("after its end: %+v", got)
	}
	if n := len(r.Locks()); n != 0 {
		t.Errorf("%d locks are listed after their end", n)
	}
}

// An operation that was approved before the lock, and one that is durably begun,
// are stopped before the request is sent.
func TestLockBeforeTheRequest(t *testing.T) {
	r := newRig(t, allowAll)
	r.store.fault = func(b Batch) fault {
		for _, e := range b.Entries {
			if e.Record.Type == audit.ExecStarted { // it is decided, and about to be sent
				r.locks.mu.Lock()
				r.locks.all = append(r.locks.all, approvals.Lock{ID: "l", Reason: "incident 4711"})
				r.locks.mu.Unlock()
			}
		}
		return none
	}
	if got := r.scale(5); got.Status != Failed || !strings.Contains(got.Reason, "incident 4711") {
		t.Errorf("%+v", got)
	}
	r.wantSent()
}
