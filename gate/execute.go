package gate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/tools"
)

// execute sends the Actions of a plan in order, in the name of as, and stops at the
// first error.
// It returns the answers of those that succeeded. What was previewed is sent
// only while the object is as it was seen; when it is not, or is only held up,
// again says whether and under which Audit-ID it is sent once more. A non-nil
// before is asked right before each.
func (g *Gate) execute(ctx context.Context, as *action.Principal, plan action.Plan, ids []string, previews []action.Preview, before func() error, again func(i int, moved bool) (string, error)) ([]Response, error) {
	var results []Response
	for i, a := range plan.Actions {
		result, err := g.executeOne(ctx, as, a, ids[i], func() (live Live) {
			if previews != nil {
				live = Live{previews[i].UID(), previews[i].ResourceVersion()}
			}
			return live
		}, len(plan.Actions) > 1, before, func(moved bool) (id string, err error) {
			ids[i], err = again(i, moved)
			return ids[i], err
		})
		if err != nil {
			return results, refusedOne(plan, a, "", err)
		}
		results = append(results, result)
	}
	return results, nil
}

// executeOne sends one Action. Of several, an eviction that is held up is waited for.
func (g *Gate) executeOne(ctx context.Context, as *action.Principal, a action.Action, id string, live func() Live, several bool, before func() error, again func(moved bool) (string, error)) (Response, error) {
	start := g.Now()
	for moves := 0; ; {
		if before != nil {
			if err := before(); err != nil {
				return Response{}, err
			}
		}
		bounded, cancel := context.WithTimeout(ctx, g.RequestTimeout+time.Duration(a.Options.TimeoutSeconds)*time.Second)
		result, err := g.Cluster.Execute(bounded, as, a, id, live())
		cancel()
		var refused *APIError
		if a.ReadOnly() || !errors.As(err, &refused) {
			return result, err
		}
		moved := refused.Code == http.StatusConflict && live() != (Live{}) && moves < maxMoves
		heldUp := several && refused.Code == http.StatusTooManyRequests && a.Subresource == action.Eviction && g.Now().Sub(start) < g.RequestTimeout
		switch {
		case moved: // while controllers are busy with the object, at once is too soon
			select {
			case <-time.After(moveEvery << moves):
			case <-ctx.Done():
				return result, err
			}
			moves++
		case heldUp: // by a disruption budget, until other pods are ready again
			select {
			case <-time.After(retryEvery):
			case <-ctx.Done():
				return result, err
			}
		default:
			return result, err
		}
		if id, err = again(moved); err != nil {
			return result, err
		}
	}
}

// maxMoves is how often a request is sent again because the object changed
// between the last look and the request, moveEvery how long it waits the first
// time; it doubles. Controllers write status all the time.
const (
	maxMoves  = 6
	moveEvery = 30 * time.Millisecond
)

// again puts another Audit-ID for a request on record. Where the object changed
// on the way it looks again first, and does so only if still says that what the
// request would do now is covered by what was decided.
func (g *Gate) again(ctx context.Context, as *action.Principal, op approvals.Operation, previews []action.Preview, i int, moved bool, still func([]action.Preview) error) (string, error) {
	if moved {
		lookCtx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
		defer cancel()
		fresh, err := g.Cluster.Preview(lookCtx, as, op.Plan.Actions[i], func() string { return auditID(op.ID) })
		if err != nil {
			return "", err
		}
		previews[i] = fresh
		if err := still(previews); err != nil {
			return "", &APIError{Code: http.StatusConflict, Reason: string(metav1.StatusReasonConflict),
				Message: "the object changed while the request was on its way, and now it is refused: " + err.Error()}
		}
	}
	ids := make([]string, len(op.Plan.Actions))
	ids[i] = auditID(op.ID)
	if err := g.commit(Batch{Entries: []Entry{g.startedEntry(op, ids, previews)}}); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotSent, err)
	}
	return ids[i], nil
}

// finish sends an operation that is durably EXECUTING, in the name of as, and records
// how it ended.
// still is asked when an object is not as it was seen, with what is seen now.
func (g *Gate) finish(ctx context.Context, as *action.Principal, op approvals.Operation, ids []string, previews []action.Preview, still func([]action.Preview) error) Result {
	start := g.Now()
	ctx, done := g.locks.run(ctx, op)
	defer done()
	unlocked := func() error {
		if l := g.locked(&op.Principal, op.Tool, op.Plan.Actions); l != nil {
			return &lockedError{*l}
		}
		return nil
	}
	results, err := g.execute(ctx, as, op.Plan, ids, previews, unlocked, func(i int, moved bool) (string, error) {
		return g.again(ctx, as, op, previews, i, moved, still)
	})
	entry := g.outcomeEntry(op.ID, op.Principal, op.Session, op.Tool, op.Plan, ids, results, err, start)
	op.Done = len(results)
	var locked *lockedError // which stopped it, or cut it off
	if err != nil && (errors.As(err, &locked) || errors.As(context.Cause(ctx), &locked)) {
		entry.Record.Approval = &audit.Approval{Lock: locked.lock.ID}
	}
	state := approvals.Succeeded
	text, renderErr := g.find(op.Tool).Render(responses(op.Plan, results))
	switch {
	case err != nil && ambiguous(err) && !op.Plan.ReadOnly():
		state = approvals.Unknown
		entry.Record.Type, entry.Record.Outcome = audit.ExecUnknown, audit.Unknown
		op.Reason = "there was no answer to the request"
		if locked != nil {
			op.Reason = "it was cut off while it ran, because " + locked.lock.Text()
		}
		var answered *APIError
		if errors.As(err, &answered) {
			op.Reason = fmt.Sprintf("the API server answered with error %d: %s", answered.Code, said(answered.Message))
		}
		op.Reason += "; it may or may not have taken effect"
	case err != nil && len(results) > 0:
		state = approvals.Partial
		text = fmt.Sprintf("%d of %d done: %s", len(results), len(op.Plan.Actions), text)
	case err != nil:
		state = approvals.Failed
	case renderErr != nil:
		text = planSummary(op) // it was done; only the answer is odd
	}
	if err != nil && state != approvals.Unknown {
		op.Reason = failed(op.ID, err).Reason
		if locked != nil {
			op.Rules = []string{lockRule + locked.lock.ID}
		}
	}
	op.Result = audit.MaskText(text)
	op, err = g.move(op, state)
	if err == nil {
		// A crash before this commit leaves EXECUTING: the next start looks at
		// the live object and records what it finds.
		// It has no time limit: there is nothing better to do than to store it.
		err = g.outcome(context.Background(), Batch{Entries: []Entry{entry}, Operations: []approvals.Operation{op}}, func() {
			g.bell.ring(op.ID)
			if op.State == approvals.Unknown {
				g.reconcileLater(op, 0)
			}
		})
	}
	if err != nil {
		g.Log.Error("storing an outcome", "op", op.ID, "err", err)
		return Result{
			Status: Unknown, Op: op.ID,
			Reason:   "the request was sent, but its outcome could not be recorded, so it is not given out",
			NextStep: "Tell the operators of Countersign. Do not send the call again.",
		}
	}
	g.bell.ring(op.ID)
	if op.State == approvals.Unknown {
		g.reconcileLater(op, 0)
	}
	return describe(op)
}

// ambiguous reports whether a request that failed may have taken effect all the
// same: there was no answer, or the API server itself does not know.
func ambiguous(err error) bool {
	var refused *APIError
	if errors.As(err, &refused) {
		return refused.Code >= http.StatusInternalServerError
	}
	return !errors.Is(err, ErrNotSent)
}

// busy reports whether an answer is about the moment and not about the request, so that
// it is worth asking again: the API server has no time or no etcd, or what stands in
// front of it has no API server. Of the errors with code 500 these are etcd's own and
// those that client-go had to find words for, because what answered is no API server.
func busy(refused *APIError) bool {
	switch refused.Code {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	case http.StatusInternalServerError:
		return refused.Reason == string(metav1.StatusReasonServerTimeout) || strings.HasPrefix(refused.Message, "etcdserver: ") ||
			strings.HasPrefix(refused.Message, "an error on the server (")
	}
	return false
}

// move takes an operation one step and counts the revision for compare-and-swap.
func (g *Gate) move(op approvals.Operation, to approvals.State) (approvals.Operation, error) {
	op, err := op.To(to, g.Now())
	op.Revision++
	return op, err
}

func (g *Gate) newOperation(c *call, state approvals.State) approvals.Operation {
	now := g.Now()
	return approvals.Operation{
		ID: c.op, State: state, Revision: 1, Principal: c.Principal, Session: c.Session,
		Tool: c.Tool, Args: maskedArgs(c.Args), AgentReason: audit.MaskText(c.Reason),
		Plan: c.Plan, PlanDigest: c.planDigest, Rules: c.decision.Rules, Reason: c.decision.Reason,
		Created: now, Updated: now,
	}
}

// withoutBodies is a plan without what would be written.
func withoutBodies(p action.Plan) action.Plan {
	p.Actions = slices.Clone(p.Actions)
	for i := range p.Actions {
		p.Actions[i].Body = nil
	}
	return p
}

func uids(previews []action.Preview) []string {
	var out []string
	for _, p := range previews {
		out = append(out, p.UID())
	}
	return out
}

func responses(plan action.Plan, results []Response) []tools.Response {
	out := make([]tools.Response, len(results))
	for i, r := range results {
		out[i] = tools.Response{Action: plan.Actions[i], Body: r.Body, Omitted: r.Omitted}
	}
	return out
}

// Reconciliation's findings.
const (
	Applied        = "applied"
	NotApplied     = "not_applied"
	Undeterminable = "undeterminable"
)

// examine looks at what an Action of unknown outcome was about: it asks the API
// server what the same request would change now. Nothing means that it is done. With an
// error it is to be asked again; early, also when it refuses everything, as an API server
// does that has just started and has not read its RBAC yet.
func (g *Gate) examine(ctx context.Context, op approvals.Operation, i int, early bool) (audit.Evidence, error) {
	a := op.Plan.Actions[i]
	if a.ReadOnly() {
		return audit.Evidence{Result: NotApplied, Detail: a.String() + ": a read changes nothing"}, nil
	}
	if a.Subresource == action.Exec {
		return audit.Evidence{Result: Undeterminable, Detail: a.String() + ": a command leaves nothing to look at"}, nil
	}
	if a.Verb == action.Create && a.Name == "" {
		return audit.Evidence{Result: Undeterminable, Detail: a.String() + ": the API server makes up the name, so the object cannot be told from others like it"}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.RequestTimeout)
	defer cancel()
	// In the caller's name, as the request was: the server may need no right to do
	// itself what agents do.
	preview, err := g.Cluster.Preview(ctx, g.latest(op.Principal), a, func() string { return auditID(op.ID) })
	var refused *APIError
	var nobody *ImpersonationError
	if errors.As(err, &nobody) {
		return audit.Evidence{Result: Undeterminable, Detail: a.String() + ": it cannot be looked at: " + nobody.Reason}, nil
	}
	if errors.As(err, &refused) && early && (refused.Code == http.StatusForbidden || refused.Code == http.StatusUnauthorized) {
		return audit.Evidence{}, err
	}
	if errors.As(err, &refused) && !busy(refused) {
		message := clip(audit.MaskText(refused.Message))
		switch {
		case a.Removes() && refused.Code == http.StatusNotFound:
			return audit.Evidence{Result: Applied, Detail: a.String() + ": there is no such object"}, nil
		case a.Verb == action.Create && refused.Reason == string(metav1.StatusReasonAlreadyExists):
			return audit.Evidence{Result: Applied, Detail: a.String() + ": an object of this name exists now"}, nil
		case message != "" && strings.Contains(op.Reason, message):
			return audit.Evidence{Result: NotApplied, Detail: a.String() + ": the API server refuses the same request in the same words: " + said(message)}, nil
		}
		return audit.Evidence{Result: Undeterminable, Detail: a.String() + ": the API server now refuses the same request: " + said(message)}, nil
	}
	if err != nil {
		return audit.Evidence{}, err
	}
	found := audit.Evidence{UID: preview.UID(), ResourceVersion: preview.ResourceVersion()}
	switch {
	case a.Removes() && i < len(op.UIDs) && op.UIDs[i] != "" && op.UIDs[i] != found.UID:
		found.Result, found.Detail = Applied, a.String()+": the object is gone, and another has its name"
	case a.Removes() && deleting(preview.Live):
		found.Result, found.Detail = Applied, a.String()+": the object is being deleted"
	case len(preview.Diff) == 0:
		found.Result, found.Detail = Applied, a.String()+": the live object is as the request would make it"
	case a.Options.PatchType == action.JSONPatch:
		found.Result = Undeterminable
		found.Detail = a.String() + ": the request would change the live object, but a JSON Patch can do so when it is done already, such as one that adds to a list"
	default:
		found.Result = NotApplied
		found.Detail = fmt.Sprintf("%s: the request would still change %d fields of the live object", a, len(preview.Diff))
		if a.Removes() {
			found.Detail = a.String() + ": the object is still there"
		} else if preview.Live == nil {
			found.Detail = a.String() + ": there is no such object"
		}
	}
	return found, nil
}

func deleting(object map[string]any) bool {
	meta, _ := object["metadata"].(map[string]any)
	return meta["deletionTimestamp"] != nil
}

// combine sums up the evidence of a plan's Actions.
func combine(all []audit.Evidence) audit.Evidence {
	out := all[0]
	details := []string{out.Detail}
	for _, e := range all[1:] {
		details = append(details, e.Detail)
		if e.Result != out.Result {
			out.Result = Undeterminable
		}
	}
	out.Detail = strings.Join(details, "; ")
	return out
}
