package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/time/rate"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// Store keeps the audit log and the operations.
type Store interface {
	// Commit stores the whole batch in one transaction or nothing of it, and
	// returns when it is durable. ErrConflict means that somebody else moved an
	// operation or asked a question first, ErrFull that there is no room; nothing
	// was stored. After any other error it is not known whether the batch was
	// stored, and the store refuses everything that follows.
	Commit(ctx context.Context, b Batch) error
	// Operation loads one operation, or ErrNotFound.
	Operation(id string) (approvals.Operation, error)
	// OpenOperations loads every operation that something may still happen to.
	OpenOperations() ([]approvals.Operation, error)
	// Operations calls f with operations, the newest id first, until f returns
	// false. Ids are UUIDv7, which sort by time.
	Operations(f func(approvals.Operation) bool) error
	// Question returns the operation that was last asked under a key, or "".
	Question(key string) (string, error)
	// Grants loads every grant that is kept, also those that hold no more.
	Grants() ([]approvals.Grant, error)
	// Prunable is what of the log is older than these times, as far as one commit can
	// take it out; zero when nothing is. A commit of a record with it takes it out.
	Prunable(payloads, records time.Time) (audit.Pruned, error)
	// Locks loads every lock that has not been removed.
	Locks() ([]approvals.Lock, error)
}

// Batch is what one Commit stores together.
type Batch struct {
	Entries []Entry
	// Operations are stored only if each one's stored revision is one less than
	// its own; a new operation has revision 1.
	Operations []approvals.Operation
	// Question, when set, makes Op the answer to Question(Key), provided that
	// the answer is still Was.
	Question *Question
	// Grants are stored as Operations are, by revision; those with the ids of
	// EndedGrants are forgotten.
	Grants      []approvals.Grant
	EndedGrants []string
	// Deliveries are what a messenger has been told.
	Deliveries []approvals.Delivery
	// Locks are added, and those with the ids of Unlocks removed.
	Locks   []approvals.Lock
	Unlocks []string
	// Late is set where nobody waits for it: it may be held back for a moment, to be
	// stored together with what comes next.
	Late bool
}

// Entry is a record and, where it has one, the payload that it commits to: masked,
// and sealed for auditors as it was before.
type Entry struct {
	Record  audit.Record
	Payload []byte
	Sealed  []byte
}

// Question joins a principal's identical calls to one pending operation.
type Question struct{ Key, Op, Was string }

// Errors of a Store that gate branches on.
var (
	ErrConflict = errors.New("changed by somebody else")
	ErrNotFound = errors.New("not found")
	ErrFull     = errors.New("the audit log is full") // it takes more when there is room again
)

// Cluster talks to the clusters with the server's own credential. Every request
// carries the Audit-ID that it is given.
//
// as is in whose name a request is sent. Where a cluster is to see the caller,
// the request shows as to its API server, an *ImpersonationError says that it
// cannot, and without as nothing is sent. What a cluster serves (Resolve, Served)
// the server asks in its own name.
type Cluster interface {
	tools.Resolver
	// Execute sends one Action. live is the object that the decision rests on:
	// another object under the same name, or another state of it, is refused
	// with code 409. It is zero when nothing was looked at, or nothing was there.
	// The error is an *APIError when the API server answered, wraps ErrNotSent
	// when the request cannot have arrived, and otherwise leaves open whether
	// it took effect.
	Execute(ctx context.Context, as *action.Principal, a action.Action, auditID string, live Live) (Response, error)
	// Preview asks the API server what the Action would do, without doing it.
	// It sends at most two requests; auditID gives each a fresh id. Errors as above.
	Preview(ctx context.Context, as *action.Principal, a action.Action, auditID func() string) (action.Preview, error)
	// Served is what a cluster serves, and its version. It is asked once in a while.
	Served(ctx context.Context, cluster string) (tools.Served, error)
	// Kubectl is kubectl's own code, which sends what it asks for through read
	// and nothing else.
	Kubectl(ctx context.Context, cluster string, read func(context.Context, action.Action) (tools.Response, error)) tools.Kubectl
	// Namespace reads one Namespace, nil when there is none. Errors as of Execute.
	Namespace(ctx context.Context, as *action.Principal, cluster, name, auditID string) (map[string]any, error)
}

// Live names an object in one of its states.
type Live struct{ UID, ResourceVersion string }

// Response is the API server's answer to one Action.
type Response struct {
	Code int
	Body []byte
	// Omitted is how many bytes came before Body and were not kept.
	Omitted int64
	// Name is of the object that a change answers with: of a creation it can be
	// one that the API server has made up.
	Name            string
	UID             string
	ResourceVersion string
}

// APIError is the API server's own refusal (metav1.Status).
type APIError struct {
	Code    int
	Reason  string
	Message string
	// User is set where the cluster's own RBAC does not let the caller do it: the
	// name that the caller has there.
	User string
}

func (e *APIError) Error() string { return e.Message }

// ImpersonationError is why a request cannot be sent in the caller's name. Its
// text is for the caller too.
type ImpersonationError struct{ Reason string }

func (e *ImpersonationError) Error() string { return e.Reason }

// Unwrap says that nothing was sent.
func (e *ImpersonationError) Unwrap() error { return ErrNotSent }

// ErrNotSent says that a request never left, so that nothing can have happened.
var ErrNotSent = errors.New("not sent")

// Gate carries out calls. Its fields are set once, before the first call.
type Gate struct {
	Store   Store
	Cluster Cluster
	// Policy gives the set in force now.
	Policy func() *policy.Set
	Tools  []*tools.Tool
	// Clusters are the names of those that are governed.
	Clusters []string
	// DigestKey keys the digests of plans that carry secret values.
	DigestKey []byte
	// Wait is how long a call waits for a person before it answers pending_approval.
	Wait time.Duration
	// Cooldown is how long after a rejection the same call is refused.
	Cooldown time.Duration
	// MaxPending is how many questions of one principal may be open.
	MaxPending int
	// GrantFor is for how long an approver may consent to a kind of change; 0 is not at all.
	GrantFor time.Duration
	// ChannelLabel is the label of a Namespace that names the channel for
	// questions about it; empty when there is none.
	ChannelLabel string
	// RequestTimeout bounds one request to an API server.
	RequestTimeout time.Duration
	// Room says why the store would take nothing that begins something now; nil says
	// that it would. Where it is not set, the store says so itself.
	Room func() error
	// Emergency keeps outcomes elsewhere that the store cannot take.
	Emergency func([]Entry) error
	// Sealer keeps payloads as they were before masking for auditors; nil keeps none.
	Sealer *audit.Sealer
	// Node names this server in records.
	Node string
	Log  *slog.Logger
	Now  func() time.Time

	budgets  budgets
	waiting  waiting
	locks    locks
	unstored unstored

	bell   bell     // rung when an operation changes
	groups sync.Map // caller -> []string, those of its last call
	seen   sync.Map // cluster name -> sight
	work   sync.WaitGroup
	workMu sync.Mutex // held while work begins in the background, or is told to end
	// background ends when the server stops; executions that have started go on.
	background context.Context
	stop       context.CancelFunc
	slots      chan struct{} // of executions
	looks      chan struct{} // of reconciliations
	changes    chan struct{} // of changes that policy allowed
	logins     struct {
		limiter *rate.Limiter
		dropped atomic.Int64
	}
}

// Refused logins that become records of their own: a burst, and so many a second.
const (
	loginBurst    = 50
	loginsASecond = 5
)

var errBusy = errors.New("as many changes as this server carries out at once are under way")

// maxChanges bounds how many changes that policy allowed run at once: they go on
// when their callers have been answered.
const maxChanges = 64

// maxExecutions bounds how many approved operations run at once.
const maxExecutions = 16

// Request is one tool call from an authenticated principal.
type Request struct {
	Principal action.Principal
	Tool      string
	RawArgs   []byte // JSON, not yet looked at
	Session   string
	Source    audit.Source
	// Progress, when set, is told every few seconds what the call waits for.
	Progress func(text string)
}

// call is a Request on its way through the gate.
type call struct {
	Request
	op    string
	start time.Time
	tool  *tools.Tool
	// policy is the set that decides all of this call, whatever is loaded meanwhile.
	policy *policy.Set
	tools.Call
	reading
	planDigest string
	intent     []Entry // not yet stored
	decision   policy.Decision
	// asked is what policy is asked, with what was read for it.
	asked policy.Call
}

// Call takes one tool call through the gate. It always answers: whatever is
// unknown, broken or missing is a refusal with a reason.
func (g *Gate) Call(ctx context.Context, req Request) (answer Result) {
	c := &call{Request: req, op: newID(), start: g.Now(), policy: g.Policy()}
	defer func() {
		if r := recover(); r != nil {
			g.Log.Error("a call panicked", "op", c.op, "tool", req.Tool, "panic", r, "stack", string(debug.Stack()))
			answer = Result{Status: Unknown, Op: c.op, Reason: ownError, NextStep: "Do not assume that nothing was done: look at the live object, and tell the operators of Countersign."}
		}
	}()
	g.groups.Store(callerOf(req.Principal), req.Principal.Groups)

	// 1. Decode the arguments, strictly and once.
	if c.tool = g.find(req.Tool); c.tool == nil {
		return g.malformed(c, tools.BadArgument("there is no tool %q; tools/list names those that you may use", req.Tool))
	}
	args, err := c.tool.Decode(req.RawArgs)
	if loop := g.looping(c, args); loop != nil {
		return g.deny(c, *loop)
	}
	if err != nil {
		return g.malformed(c, err)
	}
	c.Args = c.tool.Recordable(args)

	// 2. Could this principal ever do this? If not, no cluster is touched.
	own := c.tool.Scopes == nil // about its own operations, which a lock has withdrawn or lets be seen
	if l := g.locked(&req.Principal, req.Tool, []action.Action{{Cluster: c.tool.Cluster(args)}}); l != nil && !own {
		return g.deny(c, halted(l, c.policy))
	}
	if refusal, could := c.policy.CouldIn(c.tool.Cluster(args), &req.Principal, req.Tool, c.tool.Scopes); !could {
		return g.deny(c, refusal)
	}

	// 3. The intent. What follows stores it: with the decision where nothing is
	// sent before, on its own before the first request to the cluster. A plan
	// that cannot be made is stored as a refused call instead. Planning may make
	// the server ask what a cluster serves; that is on its own behalf, and the
	// caller learns nothing from it but the names of kinds. 4. Plan. What a tool
	// reads for it is decided and recorded by the planner.
	planning, cancel := context.WithTimeout(ctx, g.RequestTimeout)
	defer cancel()
	planned, err := c.tool.Plan(planning, &planner{g: g, c: c}, args)
	if err != nil || c.broken != nil {
		return g.unplanned(c, err)
	}
	c.Call = planned
	if c.Operation != nil {
		return g.operationCall(ctx, c)
	}
	if c.Answer != "" {
		return g.answer(c)
	}
	if c.planDigest, err = c.Plan.Digest(g.digestKey(c.Plan)); err != nil {
		return g.malformed(c, err)
	}
	c.intent = []Entry{g.plannedEntry(c)}

	// 5. Preview, only if the decision or an approver needs it. 6. Decide.
	var stored error
	var over *policy.Decision
	c.asked = policy.Call{Principal: &c.Principal, Plan: c.Plan, Args: c.Args, Now: g.Now()}
	c.decision, err = g.settle(ctx, c.policy, c.op, &c.asked, func() error {
		if over = g.exhausted(c); over != nil {
			return errExhausted
		}
		stored = g.commit(Batch{Entries: c.intent})
		c.intent = nil
		return stored
	})
	switch {
	case over != nil:
		return g.deny(c, *over)
	case stored != nil:
		return g.unrecorded(c, stored)
	case err != nil:
		return g.notBegun(c, err)
	}
	if c.decision.Effect == policy.Allow { // what is asked draws when it is asked
		c.decision = g.limited(c, c.decision)
	}
	switch c.decision.Effect {
	case policy.Allow:
		if c.Plan.ReadOnly() {
			return g.read(ctx, c)
		}
		op := g.newOperation(c, approvals.Executing)
		op.UIDs = uids(c.asked.Previews)
		answer, err := g.change(ctx, c, op, nil)
		if err != nil {
			return g.unrecorded(c, err)
		}
		return answer
	case policy.RequireApproval:
		// 7. Ask, and wait a little.
		return g.ask(ctx, c)
	}
	return g.deny(c, c.decision)
}

var errExhausted = errors.New("a limit is exhausted")

// callerOf names the caller whose groups may change between question and
// execution: the same subject through the same client for the same person.
func callerOf(p action.Principal) string {
	return p.Key() + "\n" + p.Client + "\n" + p.OnBehalfOf
}

// Visible lists the tools that the principal could be allowed to use, by the
// same function that refuses the others.
func (g *Gate) Visible(p *action.Principal) []*tools.Tool {
	var visible []*tools.Tool
	for _, t := range g.Tools {
		if _, could := g.Policy().Could(p, t.Name, t.Scopes); could {
			visible = append(visible, t)
		}
	}
	return visible
}

// Permissions tells a caller, in words, which tools it could use and which rules
// are about it. Nothing is asked of a cluster.
func (g *Gate) Permissions(p *action.Principal) string {
	var b strings.Builder
	fmt.Fprintf(&b, "You are %s, subject %s of %s, in the groups %s.\n\nTools that policy could allow you:\n", p.Username, p.Subject, p.Issuer, strings.Join(p.Groups, ", "))
	for _, t := range g.Visible(p) {
		word := "changes"
		if t.ReadOnly() {
			word = "reads"
		}
		fmt.Fprintf(&b, "%s (%s)\n", t.Name, word)
	}
	b.WriteString("\nRules about you. A denial beats a demand for approval, which beats an allowance; what nothing allows is denied:\n")
	for _, line := range g.Policy().About(p) {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// PolicySummary sums the policy in force up, for any caller.
func (g *Gate) PolicySummary() string {
	set := g.Policy()
	info := set.Info()
	off := "none"
	if len(info.GuardsOff) > 0 {
		off = strings.Join(info.GuardsOff, ", ")
	}
	return fmt.Sprintf("Policy %s: %d rules, %d limits.\nBuilt-in guards that are switched off: %s.\n"+
		"Every call is decided by it and recorded. Use check_access to ask about one request, and diff_manifest to see what an apply would do and who would be asked.\n",
		set.Digest(), info.Rules, info.Limits, off)
}

func (g *Gate) find(name string) *tools.Tool {
	for _, t := range g.Tools {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// read is the light way: the intent is stored while the request runs, and the
// answer is held back until it is durable.
func (g *Gate) read(ctx context.Context, c *call) Result {
	ids := newAuditIDs(c.op, len(c.Plan.Actions))
	results, err, broken := g.sendRead(ctx, &c.Principal, c.Plan, ids, append(c.intent, g.decidedRead(c, c.Plan, ids, c.decision)))
	if broken != nil {
		return g.unrecorded(c, broken)
	}
	outcome := g.outcomeEntry(c.op, c.Principal, c.Session, c.Tool, c.Plan, ids, results, err, c.start)
	outcome.Record.Actions = append(outcome.Record.Actions, c.notSent()...)
	var text string
	if err == nil {
		if text, err = c.tool.Render(responses(c.Plan, results)); err != nil {
			outcome.Record.Outcome, outcome.Record.Error = audit.Failure, recordError(err)
		}
	}
	g.later(c.op, outcome)
	if err != nil {
		return failed(c.op, err)
	}
	return Result{Status: Succeeded, Op: c.op, Data: audit.MaskText(text)}
}

// sendRead sends requests that change nothing while what is to be on record of
// them is stored. No answer is to be given out when broken is set: it was not.
func (g *Gate) sendRead(ctx context.Context, as *action.Principal, plan action.Plan, ids []string, entries []Entry) (results []Response, err, broken error) {
	if g.Room != nil { // or it would be sent before the store has refused it
		if err := g.Room(); err != nil {
			return nil, nil, err
		}
	}
	durable := make(chan error, 1)
	go func() {
		durable <- g.commit(Batch{Entries: entries})
	}()
	results, err = g.execute(ctx, as, plan, ids, nil, nil, nil)
	return results, err, <-durable
}

// change is the way of a write that policy or a grant allows: one commit before,
// one after. The client going away does not stop it once it has started. With an
// error nothing was begun; ErrConflict says that the grant is no longer as it was.
func (g *Gate) change(ctx context.Context, c *call, op approvals.Operation, grant *approvals.Grant) (Result, error) {
	ctx = context.WithoutCancel(ctx)
	select {
	case g.changes <- struct{}{}:
	default:
		return g.notBegun(c, errBusy), nil
	}
	ids := newAuditIDs(c.op, len(c.Plan.Actions))
	decided, started := g.decidedEntry(c.op, c.Principal, c.Session, c.Tool, c.decision), g.startedEntry(op, ids, c.asked.Previews)
	b := Batch{Operations: []approvals.Operation{op}}
	if grant != nil {
		// The use is counted in the commit that starts it, so that nothing starts
		// under a grant that is taken back at the same time.
		used := *grant
		used.Uses, used.Revision = used.Uses+1, used.Revision+1
		b.Grants = []approvals.Grant{used}
		decided.Record.Outcome = audit.Success
		decided.Record.Approval = &audit.Approval{Grant: grant.ID, By: grant.By(), PlanDigest: op.PlanDigest, PreviewDigest: op.PreviewDigest}
	}
	b.Entries = append(slices.Clone(c.intent), decided, started)
	// A crash before this commit leaves nothing. A crash after it leaves an
	// operation in EXECUTING, which the next start turns into UNKNOWN and
	// looks into; it is never sent again.
	if err := g.commit(b); err != nil {
		<-g.changes
		return Result{}, err
	}
	done := g.carryOut(ctx, c, op, ids)
	// Many evictions can take longer than a client waits for an answer.
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for limit := time.After(tools.MaxWait); ; {
		select {
		case r := <-done:
			return r, nil
		case <-tick.C:
			if c.Progress != nil {
				c.Progress("still running")
			}
		case <-limit:
			return describe(op), nil
		}
	}
}

// carryOut sends an allowed change that is durably EXECUTING, and goes on when
// its caller has been answered. It gives its place back at the end.
func (g *Gate) carryOut(ctx context.Context, c *call, op approvals.Operation, ids []string) <-chan Result {
	done := make(chan Result, 1)
	g.work.Go(func() {
		answer := Result{
			Status: Unknown, Op: op.ID, Reason: ownError,
			NextStep: "Look at the live object, and tell the operators of Countersign; do not send the call again.",
		}
		defer func() {
			if r := recover(); r != nil {
				g.Log.Error("carrying out a change panicked", "op", op.ID, "panic", r, "stack", string(debug.Stack()))
				if op, err := g.lost(op); err == nil {
					g.reconcileLater(op, 0)
				}
			}
			<-g.changes
			done <- answer
		}()
		answer = g.finish(ctx, &op.Principal, op, ids, c.asked.Previews, func(previews []action.Preview) error {
			return g.stillAllowed(c, op, previews)
		})
	})
	return done
}

// ownError is all that a caller is told of a panic; the log has the rest.
const ownError = "the server met an error of its own"

// commit stores a batch. It does not end with the call that it is about: a
// caller who goes away must not leave a hole in the log.
func (g *Gate) commit(b Batch) error {
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	return g.store(ctx, b)
}

// store is commit for those who have their own limit of time.
func (g *Gate) store(ctx context.Context, b Batch) error {
	b.Entries = split(b.Entries)
	err := g.Store.Commit(ctx, b)
	if err == nil {
		for _, op := range b.Operations {
			g.uncount(op)
		}
	}
	return err
}

// commitTimeout bounds how long a commit may wait for its turn.
const commitTimeout = 30 * time.Second

// later stores an outcome that nobody waits for.
func (g *Gate) later(op string, outcome Entry) {
	g.work.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
		defer cancel()
		if err := g.outcome(ctx, Batch{Entries: []Entry{outcome}, Late: true}, nil); err != nil {
			g.Log.Error("storing an outcome", "op", op, "err", err)
		}
	})
}

func (g *Gate) digestKey(p action.Plan) []byte {
	if p.Secret() {
		return g.DigestKey
	}
	return nil
}

func newID() string { return uuid.Must(uuid.NewV7()).String() }

// auditID is a fresh id for one request. It begins with the operation's id, so
// that the cluster's own audit log can be searched by operation.
func auditID(op string) string { return op + "." + uuid.NewString()[:8] }

func newAuditIDs(op string, n int) []string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = auditID(op)
	}
	return ids
}
