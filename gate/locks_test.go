package gate

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
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

// What can be no name locks nothing, and so is refused: patterns above all, which
// policy takes and locks do not.
func TestLockOfNoName(t *testing.T) {
	r := newRig(t, allowAll)
	for _, l := range []approvals.Lock{
		{Tool: "scale_*"}, {Tool: "Scale_Deployment"}, {Cluster: "eas*"}, {Cluster: "EAST"},
		{Namespace: "shop-*"}, {Namespace: "Shop"}, {Namespace: " shop"}, {Namespace: "*"},
		{Principal: "bot-*"}, {Principal: "*"}, {Principal: "bot "}, {Principal: " "},
	} {
		l.Reason = "incident 4711"
		if _, err := r.Lock(l, sre("bea")); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", l.What(), err)
		}
	}
	if n := len(r.Locks()); n != 0 {
		t.Errorf("%d locks hold", n)
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

// A lock that is set while a request is refused for the object's having changed
// stops the next try.
func TestLockBetweenTries(t *testing.T) {
	r := newRig(t, askAll)
	id := r.scale(5).Op
	r.cluster.refuse = func(action.Action) (error, bool) {
		r.locks.mu.Lock()
		r.locks.all = append(r.locks.all, approvals.Lock{ID: "l", Reason: "incident 4711"})
		r.locks.mu.Unlock()
		return &APIError{Code: http.StatusConflict, Reason: "Conflict", Message: "the object has been modified"}, false
	}
	r.approve(id)
	if op := r.reaches(id, approvals.Failed); !strings.Contains(op.Reason, "incident 4711") || !slices.Equal(op.Rules, []string{"lock:l"}) {
		t.Errorf("failed because %q, by %v", op.Reason, op.Rules)
	}
	if n := len(r.cluster.executed()); n > 1 {
		t.Errorf("sent %d times", n)
	}
}

// An agent that acts for two people asks twice: what it does for one of them must
// not be decided by the other, nor be seen or withdrawn for the other.
func TestAgentOfTwoPeople(t *testing.T) {
	r := newRig(t, askAll)
	alice, mallory := bot, bot
	alice.OnBehalfOf, mallory.OnBehalfOf = "alice", "mallory"
	const args = `{"namespace":"shop","name":"web","replicas":5}`
	first, second := r.callAs(alice, "scale_deployment", args), r.callAs(mallory, "scale_deployment", args)
	if first.Status != Pending || second.Status != Pending || first.Op == second.Op {
		t.Fatalf("%+v\n%+v", first, second)
	}
	if _, err := r.Vote(second.Op, sre("mallory"), approvals.Ballot{Approve: true}); !errors.Is(err, approvals.ErrSelfApproval) {
		t.Errorf("mallory decides what is done for her: %v", err)
	}
	for _, tool := range []string{"get_operation", "cancel_operation"} {
		if got := r.callAs(mallory, tool, `{"op":"`+first.Op+`"}`); got.Status != Failed || !strings.Contains(got.Reason, "no operation with this id") {
			t.Errorf("%s: %+v", tool, got)
		}
	}
	if got := r.callAs(mallory, "list_operations", `{}`); strings.Contains(got.Data, first.Op) || !strings.Contains(got.Data, second.Op) {
		t.Errorf("mallory's agent lists %s", got.Data)
	}
}
