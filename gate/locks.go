package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
)

// locks are those that hold, and what runs and may have to be stopped.
type locks struct {
	mu      sync.Mutex
	all     []approvals.Lock
	running map[string]running
}

type running struct {
	op   approvals.Operation
	stop context.CancelCauseFunc
}

// lockedError says that a lock stopped something before it was sent.
type lockedError struct{ lock approvals.Lock }

func (e *lockedError) Error() string { return e.lock.Text() }

func (e *lockedError) Unwrap() error { return ErrNotSent }

// locked finds a lock on a call; nil when there is none.
func (g *Gate) locked(p *action.Principal, tool string, actions []action.Action) *approvals.Lock {
	g.locks.mu.Lock()
	defer g.locks.mu.Unlock()
	now := g.Now()
	for i := range g.locks.all {
		if l := g.locks.all[i]; l.Holds(now) && l.Halts(p, tool, actions) {
			return &l
		}
	}
	return nil
}

// decide asks the locks and then policy. Every decision of the gate is made here.
func (g *Gate) decide(set *policy.Set, c *policy.Call) policy.Decision {
	if l := g.locked(c.Principal, c.Plan.Tool, c.Plan.Actions); l != nil {
		return halted(l, set)
	}
	return set.DecideCall(c)
}

func halted(l *approvals.Lock, set *policy.Set) policy.Decision {
	return policy.Decision{Effect: policy.Deny, Rules: []string{lockRule + l.ID}, Reason: l.Text(), Digest: set.Digest()}
}

// run notes what is being executed, so that a lock can stop it.
func (l *locks) run(ctx context.Context, op approvals.Operation) (context.Context, func()) {
	ctx, stop := context.WithCancelCause(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		l.running = map[string]running{}
	}
	l.running[op.ID] = running{op, stop}
	return ctx, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.running, op.ID)
		stop(nil)
	}
}

// Locks lists the locks that hold.
func (g *Gate) Locks() []approvals.Lock {
	g.locks.mu.Lock()
	defer g.locks.mu.Unlock()
	now := g.Now()
	return slices.DeleteFunc(slices.Clone(g.locks.all), func(l approvals.Lock) bool { return !l.Holds(now) })
}

// Lock halts what it names, from when it returns: new calls are denied, what
// waits is withdrawn, a command that runs is cut off, and of several requests
// the next is not sent. A request that is on its way is not called back.
func (g *Gate) Lock(l approvals.Lock, by approvals.Person) (approvals.Lock, error) {
	l.ID, l.By, l.Created = newID(), by.String(), g.Now()
	l.Reason = audit.MaskText(clip(l.Reason))
	if err := g.commit(Batch{Entries: []Entry{g.lockEntry(audit.LockAdded, l)}, Locks: []approvals.Lock{l}}); err != nil {
		return l, err
	}
	g.locks.mu.Lock()
	g.locks.all = append(slices.DeleteFunc(g.locks.all, func(l approvals.Lock) bool { return !l.Holds(g.Now()) }), l)
	for _, r := range g.locks.running {
		if r.op.Plan.Runs() && l.Halts(&r.op.Principal, r.op.Tool, r.op.Plan.Actions) {
			r.stop(&lockedError{l})
		}
	}
	g.locks.mu.Unlock()
	return l, g.withdraw(l)
}

// withdraw closes what waits for approval or for its execution.
func (g *Gate) withdraw(l approvals.Lock) error {
	open, err := g.Store.OpenOperations()
	if err != nil {
		return err
	}
	for _, op := range open {
		if op.State != approvals.PendingApproval && op.State != approvals.Authorized || !l.Halts(&op.Principal, op.Tool, op.Plan.Actions) {
			continue
		}
		_, failed := g.update(op.ID, func(op approvals.Operation) (approvals.Operation, Batch, error) {
			op, err := g.move(op, approvals.Cancelled)
			op.Reason = l.Text()
			op.Rules = []string{lockRule + l.ID}
			return op, Batch{Entries: []Entry{g.approvalEntry(audit.ApprovalDecided, op)}}, err
		})
		if failed != nil && !errors.Is(failed, ErrNotFound) {
			// It was decided or started at the same moment; the execution asks the locks itself.
			g.Log.Info("an operation was quicker than a lock", "op", op.ID, "err", failed)
		}
	}
	return nil
}

// Unlock removes a lock.
func (g *Gate) Unlock(id string, by approvals.Person) (approvals.Lock, error) {
	all := g.Locks()
	at := slices.IndexFunc(all, func(l approvals.Lock) bool { return l.ID == id })
	if at < 0 {
		return approvals.Lock{}, fmt.Errorf("lock %s: %w; countersign lock list shows those that hold", id, ErrNotFound)
	}
	l := all[at]
	entry := g.lockEntry(audit.LockRemoved, l)
	entry.Record.Approval.By = []string{by.String()}
	if err := g.commit(Batch{Entries: []Entry{entry}, Unlocks: []string{id}}); err != nil {
		return l, err
	}
	g.locks.mu.Lock()
	defer g.locks.mu.Unlock()
	g.locks.all = slices.DeleteFunc(g.locks.all, func(l approvals.Lock) bool { return l.ID == id })
	return l, nil
}

func (g *Gate) lockEntry(recordType string, l approvals.Lock) Entry {
	r := g.serverRecord(recordType)
	r.Outcome = audit.Success
	r.Approval = &audit.Approval{By: []string{l.By}, Reason: l.Text()}
	return withPayload(r, l)
}
