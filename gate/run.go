package gate

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
)

// Start takes up what an earlier run of the server left: operations that were
// being executed become UNKNOWN and are looked into, approved ones are executed,
// pending ones wait on. It must be called once, before the first Call.
func (g *Gate) Start() (err error) {
	g.background, g.stop = context.WithCancel(context.Background())
	g.slots, g.looks = make(chan struct{}, maxExecutions), make(chan struct{}, maxExecutions)
	g.changes = make(chan struct{}, maxChanges)
	g.logins.limiter = rate.NewLimiter(loginsASecond, loginBurst)
	if err := g.commit(Batch{Entries: []Entry{{Record: g.serverRecord(audit.LogOpened)}}}); err != nil {
		return err
	}
	if err := g.forgetGrants(); err != nil {
		return err
	}
	if err := g.takeUpLocks(); err != nil {
		return err
	}
	open, err := g.Store.OpenOperations()
	if err != nil {
		return err
	}
	for _, op := range open {
		switch op.State {
		case approvals.PendingApproval:
			g.waiting.enter(op, anyNumber)
			g.expireLater(op)
		case approvals.Authorized:
			g.runLater(op.ID)
		case approvals.Executing:
			if op, err = g.lost(op); err != nil {
				return err
			}
			fallthrough
		case approvals.Unknown:
			g.reconcileLater(op, 0)
		}
	}
	return nil
}

// Quit begins nothing new in the background, and makes calls that wait for a
// person answer where they stand. What it leaves is taken up by the next start.
func (g *Gate) Quit() {
	g.workMu.Lock()
	defer g.workMu.Unlock()
	g.stop()
}

// begin starts work that Stop waits for, unless the server stops already.
func (g *Gate) begin(f func()) {
	g.workMu.Lock()
	defer g.workMu.Unlock()
	if g.background.Err() == nil {
		g.work.Go(f)
	}
}

// Stop quits and waits for what has started, at most until ctx ends.
func (g *Gate) Stop(ctx context.Context) {
	g.Quit()
	done := make(chan struct{})
	go func() {
		g.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// inBackground runs one piece of work on an operation that outlives the call that led
// to it, a bounded number at once.
func (g *Gate) inBackground(slots chan struct{}, op string, f func(ctx context.Context)) {
	g.begin(func() {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			defer func() {
				// One operation that cannot be handled must not take the others with
				// it, at this start and at every next one.
				if r := recover(); r != nil {
					g.Log.Error("work on an operation panicked", "op", op, "panic", r, "stack", string(debug.Stack()))
				}
			}()
			if g.background.Err() == nil {
				f(g.background)
			}
		case <-g.background.Done():
		}
	})
}

// lost records that a crash left the outcome of an operation open.
func (g *Gate) lost(op approvals.Operation) (approvals.Operation, error) {
	op, err := g.move(op, approvals.Unknown)
	if err != nil {
		return op, err
	}
	op.Reason = "the server stopped between sending the request and recording its outcome"
	r := g.record(audit.ExecUnknown, op.ID, op.Principal, op.Session, op.Tool)
	r.Outcome, r.Actions = audit.Unknown, recordActions(op.Plan, nil, nil)
	r.Error = &audit.Error{Type: "interrupted", Message: op.Reason}
	return op, g.commit(Batch{Entries: []Entry{{Record: r}}, Operations: []approvals.Operation{op}})
}

// retry runs the work once more in a while, and gives its place to others until
// then. When the server stops before, the next start takes the operation up.
func (g *Gate) retry(op string, f func(ctx context.Context)) {
	time.AfterFunc(retryEvery, func() { g.inBackground(g.slots, op, f) })
}

// retryEvery is how long to wait before asking a cluster again that could not answer.
const retryEvery = 2 * time.Second

// retryAtMost is how long at most.
const retryAtMost = 5 * time.Minute

// reconcileLater looks into an operation after a while: at once the first time,
// then less and less often. It has places of its own, so that a cluster that
// cannot answer does not hold up what was approved for another.
func (g *Gate) reconcileLater(op approvals.Operation, waited time.Duration) {
	next := min(max(2*waited, retryEvery), retryAtMost)
	time.AfterFunc(waited, func() {
		g.inBackground(g.looks, op.ID, func(ctx context.Context) { g.reconcile(ctx, op, next) })
	})
}

// refusalHolds is how long a cluster may go on refusing a look until it is believed.
const refusalHolds = time.Minute

// reconcile finds out what became of an operation of unknown outcome. It asks
// until the cluster answers, and never sends the request again.
func (g *Gate) reconcile(ctx context.Context, op approvals.Operation, wait time.Duration) {
	all := make([]audit.Evidence, len(op.Plan.Actions))
	for i := range op.Plan.Actions {
		var err error
		if all[i], err = g.examine(ctx, op, i, wait < refusalHolds); err != nil {
			g.Log.Warn("looking into an operation of unknown outcome", "op", op.ID, "err", audit.MaskText(err.Error()))
			g.reconcileLater(op, wait)
			return
		}
	}
	found := combine(all)
	found.Detail = audit.MaskText(found.Detail)
	_, err := g.update(op.ID, func(op approvals.Operation) (approvals.Operation, Batch, error) {
		op, err := g.move(op, approvals.Reconciled)
		op.Evidence = found.Result
		op.Reason = found.Detail
		r := g.record(audit.ExecReconciled, op.ID, op.Principal, op.Session, op.Tool)
		r.Actions, r.Evidence = recordActions(op.Plan, nil, nil), &found
		r.Outcome = map[string]string{Applied: audit.Success, NotApplied: audit.Failure, Undeterminable: audit.Unknown}[found.Result]
		return op, Batch{Entries: []Entry{{Record: r}}}, err
	})
	if err != nil {
		g.Log.Error("recording a reconciliation", "op", op.ID, "err", err)
		if errors.Is(err, ErrFull) {
			g.reconcileLater(op, wait)
		}
		return
	}
	g.Log.Warn("operation of unknown outcome reconciled", "op", op.ID, "result", found.Result)
}

func (g *Gate) runLater(id string) {
	g.inBackground(g.slots, id, func(ctx context.Context) { g.run(ctx, id) })
}

// run executes an approved operation, after looking again at everything that
// may have changed since it was approved.
func (g *Gate) run(ctx context.Context, id string) {
	op, err := g.Store.Operation(id)
	if err != nil || op.State != approvals.Authorized {
		return // cancelled, or another replica has it
	}
	if g.Room != nil && g.Room() != nil { // look at nothing that cannot be begun
		g.retry(id, func(ctx context.Context) { g.run(ctx, id) })
		return
	}
	again, err := g.attempt(ctx, op)
	again = again || errors.Is(err, ErrFull)
	if err != nil && !errors.Is(err, ErrConflict) {
		g.Log.Error("executing an approved operation", "op", id, "err", audit.MaskText(err.Error()))
	}
	if again {
		g.retry(id, func(ctx context.Context) { g.run(ctx, id) })
	}
}

// latest is the principal of an operation with the groups of its latest call.
func (g *Gate) latest(p action.Principal) *action.Principal {
	if groups, ok := g.groups.Load(callerOf(p)); ok {
		p.Groups = groups.([]string)
	}
	return &p
}

// attempt is step 8 of the gate's order. It reports whether to try again after
// an error.
func (g *Gate) attempt(ctx context.Context, op approvals.Operation) (again bool, err error) {
	if !g.Now().Before(op.Expires) {
		return false, g.end(op, approvals.Expired, "approved, but too late to be started")
	}
	principal := g.latest(op.Principal)
	tool := g.find(op.Tool)
	if tool == nil {
		return false, g.end(op, approvals.Denied, "this server no longer has the tool "+op.Tool)
	}
	set := g.Policy()
	if refusal, could := set.Could(principal, op.Tool, tool.Scopes); !could {
		return false, g.endDenied(op, refusal)
	}
	call := policy.Call{Principal: principal, Plan: op.Plan, Args: op.Args, Now: g.Now()}
	err = g.look(ctx, op.ID, &call, policy.NeedPreview)
	var decision policy.Decision
	if err == nil {
		decision, err = g.settle(ctx, set, op.ID, &call, nil)
	}
	previews := call.Previews
	var refused *APIError
	if errors.As(err, &refused) && !busy(refused) {
		reason := "the API server now refuses it: " + said(refused.Message)
		if refused.User != "" {
			reason = refusedBy("it", refused)
		}
		return false, g.end(op, approvals.Stale, reason)
	}
	var nobody *ImpersonationError
	if errors.As(err, &nobody) {
		return false, g.end(op, approvals.Stale, nobody.Reason)
	}
	if err != nil {
		return true, err
	}
	if decision.Effect != policy.Allow && decision.Effect != policy.RequireApproval {
		return false, g.endDenied(op, decision)
	}
	fresh, err := g.question(op, set, &call, decision)
	if err != nil {
		return false, err
	}
	if fresh.PreviewDigest != op.PreviewDigest {
		return false, g.askAgain(op, fresh, "what would change is no longer what was approved")
	}
	if fresh.Missing() > 0 {
		return false, g.askAgain(op, fresh, "policy now asks for more than was given")
	}
	if !g.Now().Before(op.Expires) { // previews can take their time
		return false, g.end(op, approvals.Expired, "approved, but too late to be started")
	}
	if op, err = g.move(op, approvals.Executing); err != nil {
		return false, err
	}
	ids := newAuditIDs(op.ID, len(op.Plan.Actions))
	started := g.startedEntry(op, ids, previews)
	started.Record.Policy = recordPolicy(decision)
	// Of two replicas, clicks or retries exactly one commits this.
	if err := g.commit(Batch{Entries: []Entry{started}, Operations: []approvals.Operation{op}}); err != nil {
		return !errors.Is(err, ErrConflict), err
	}
	g.finish(context.WithoutCancel(ctx), principal, op, ids, previews, func(previews []action.Preview) error {
		digest, err := action.PreviewDigest(previews, g.digestKey(op.Plan))
		if err == nil && digest != op.PreviewDigest {
			err = errors.New("what would change is no longer what was approved")
		}
		return err
	})
	return false, nil
}

// end closes an approved operation that will not be executed.
func (g *Gate) end(op approvals.Operation, state approvals.State, reason string, more ...Entry) error {
	op, err := g.move(op, state)
	if err != nil {
		return err
	}
	op.Reason = audit.MaskText(reason)
	entries := append(more, g.approvalEntry(audit.ApprovalDecided, op))
	if err := g.commit(Batch{Entries: entries, Operations: []approvals.Operation{op}}); err != nil {
		return err
	}
	g.bell.ring(op.ID)
	return nil
}

func (g *Gate) endDenied(op approvals.Operation, d policy.Decision) error {
	op.Rules = d.Rules
	return g.end(op, approvals.Denied, d.Reason, g.decidedEntry(op.ID, op.Principal, op.Session, op.Tool, d))
}

// askAgain makes an approved operation STALE and asks the same anew, with what
// would change now, in one commit.
func (g *Gate) askAgain(op, fresh approvals.Operation, reason string) error {
	fresh.ID, fresh.State, fresh.Revision = newID(), approvals.PendingApproval, 1
	fresh.Votes, fresh.Supersedes, fresh.Drift = nil, op.ID, approvals.Drifted(op, fresh)
	if len(fresh.Drift) == 0 && fresh.PreviewDigest != op.PreviewDigest {
		fresh.Drift = []string{"a value that is masked here is another one than before"}
	}
	fresh.Created, fresh.Updated = g.Now(), g.Now()
	if len(fresh.Requirements) == 0 {
		// Policy would allow what drifted, but somebody was asked about something
		// else: the same people decide.
		fresh.Requirements, fresh.Rules = op.Requirements, op.Rules
		fresh.Expires = approvals.Expiry(fresh.Requirements, g.Now())
	}
	stale, err := g.move(op, approvals.Stale)
	if err != nil {
		return err
	}
	stale.Reason, stale.SupersededBy = reason, fresh.ID
	g.waiting.enter(fresh, anyNumber)
	err = g.commit(Batch{
		Entries:    []Entry{g.approvalEntry(audit.ApprovalDecided, stale), g.requestedEntry(fresh)},
		Operations: []approvals.Operation{stale, fresh},
		Question:   &Question{Key: op.Question, Op: fresh.ID, Was: op.ID},
	})
	if err != nil {
		g.waiting.leave(fresh.ID)
		return err
	}
	g.bell.ring(op.ID)
	g.expireLater(fresh)
	return nil
}

// bell tells waiting calls that an operation has changed.
type bell struct {
	mu    sync.Mutex
	waits map[string]*listeners
}

type listeners struct {
	changed chan struct{}
	count   int
}

// listen returns a channel that is closed at the operation's next change, and
// a function to call when nobody listens any more.
func (b *bell) listen(id string) (<-chan struct{}, func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waits == nil {
		b.waits = map[string]*listeners{}
	}
	l := b.waits[id]
	if l == nil {
		l = &listeners{changed: make(chan struct{})}
		b.waits[id] = l
	}
	l.count++
	return l.changed, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if l.count--; l.count == 0 && b.waits[id] == l {
			delete(b.waits, id)
		}
	}
}

func (b *bell) ring(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.waits[id]; l != nil {
		close(l.changed)
		delete(b.waits, id)
	}
}
