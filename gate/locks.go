package gate

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
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

// takeUpLocks reads the locks that hold, and forgets those that ended: the log
// keeps them.
func (g *Gate) takeUpLocks() error {
	stored, err := g.Store.Locks()
	if err != nil {
		return err
	}
	var ended []string
	for _, l := range stored {
		if l.Holds(g.Now()) {
			g.locks.all = append(g.locks.all, l)
		} else {
			ended = append(ended, l.ID)
		}
	}
	if len(ended) == 0 {
		return nil
	}
	return g.commit(Batch{Unlocks: ended})
}

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

// namespaceName is what a namespace can be called (Kubernetes, RFC 1123 label names).
var namespaceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// Lock halts what it names, from when it returns: new calls are denied, what
// waits is withdrawn, a command that runs is cut off, and of several requests
// the next is not sent. A request that is on its way is not called back.
//
// A tool or a cluster that does not exist is refused, and what can be no name of a
// namespace or of a principal, such as a pattern: in an emergency, a lock that locks
// nothing for a misspelt name is the worst answer.
func (g *Gate) Lock(l approvals.Lock, by approvals.Person) (set Locked, err error) {
	if l.Tool != "" && g.find(l.Tool) == nil {
		return set, fmt.Errorf("%w: there is no tool %q", ErrNotFound, l.Tool)
	}
	if l.Cluster != "" && !slices.Contains(g.Clusters, l.Cluster) {
		return set, fmt.Errorf("%w: there is no cluster %q; the configuration has %v", ErrNotFound, l.Cluster, g.Clusters)
	}
	if l.Namespace != "" && !namespaceName.MatchString(l.Namespace) {
		return set, fmt.Errorf("%w: there can be no namespace %q; a lock takes one whole name, and no pattern", ErrNotFound, l.Namespace)
	}
	if strings.Contains(l.Principal, "*") || strings.TrimSpace(l.Principal) != l.Principal {
		return set, fmt.Errorf("%w: a lock takes one whole name of a principal, and %q holds a * or begins or ends with a space", ErrNotFound, l.Principal)
	}
	l.ID, l.By, l.Created = newID(), by.String(), g.Now()
	l.Reason = audit.MaskText(clip(l.Reason))
	if err := g.commit(Batch{Entries: []Entry{g.lockEntry(audit.LockAdded, l)}, Locks: []approvals.Lock{l}}); err != nil {
		return set, err
	}
	set.Lock = l
	g.locks.mu.Lock()
	g.locks.all = append(slices.DeleteFunc(g.locks.all, func(l approvals.Lock) bool { return !l.Holds(g.Now()) }), l)
	for _, r := range g.locks.running {
		if r.op.Plan.Runs() && l.Halts(&r.op.Principal, r.op.Tool, r.op.Plan.Actions) {
			r.stop(&lockedError{l})
			set.CutOff++
		}
	}
	g.locks.mu.Unlock()
	set.Withdrawn, err = g.withdraw(l)
	return set, err
}

// Locked is a lock that was set, and what it stopped.
type Locked struct {
	approvals.Lock
	// Withdrawn counts operations that waited, CutOff commands that ran.
	Withdrawn int `json:"withdrawn"`
	CutOff    int `json:"cut_off"`
}

// withdraw closes what waits for approval or for its execution.
func (g *Gate) withdraw(l approvals.Lock) (withdrawn int, err error) {
	open, err := g.Store.OpenOperations()
	if err != nil {
		return 0, err
	}
	for _, op := range open {
		if op.State != approvals.PendingApproval && op.State != approvals.Authorized || !l.Halts(&op.Principal, op.Tool, op.Plan.Actions) {
			continue
		}
		_, failed := g.update(op.ID, func(op approvals.Operation) (approvals.Operation, Batch, error) {
			op, err := g.move(op, approvals.Cancelled)
			op.Reason = l.Text()
			op.Rules = []string{lockRule + l.ID}
			decided := g.approvalEntry(audit.ApprovalDecided, op)
			decided.Record.Approval.Lock, decided.Record.Approval.By = l.ID, []string{l.By}
			return op, Batch{Entries: []Entry{decided}}, err
		})
		if now, err := g.Store.Operation(op.ID); failed != nil && (err != nil || now.State == op.State) {
			return withdrawn, failed
		}
		if failed == nil { // else it was decided or begun at the same moment, and asks the locks itself
			withdrawn++
		}
	}
	return withdrawn, nil
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
	r.Approval = &audit.Approval{By: []string{l.By}, Reason: l.Text(), Lock: l.ID}
	return withPayload(r, l)
}
