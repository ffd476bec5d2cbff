package gate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// ask stores the question, or joins the same one that is already open, and
// waits for its answer as long as a call may wait.
func (g *Gate) ask(ctx context.Context, c *call) Result {
	key := c.questionKey()
	drawn := false // a call draws once, however often others are quicker
	for {
		was, err := g.Store.Question(key)
		if err != nil {
			return g.unrecorded(c, err)
		}
		if was != "" {
			asked, err := g.Store.Operation(was)
			if err != nil && !errors.Is(err, ErrNotFound) {
				return g.unrecorded(c, err)
			}
			if err == nil && asked.State.Open() {
				return g.join(ctx, c, asked)
			}
			if err == nil && asked.State == approvals.Rejected && g.Now().Sub(asked.Updated) < g.Cooldown {
				return g.coolingDown(c, asked)
			}
		}
		if !drawn {
			if c.decision = g.limited(c, c.decision); c.decision.Effect == policy.Deny {
				return g.deny(c, c.decision)
			}
			drawn = true
		}
		op := g.newOperation(c, approvals.PendingApproval)
		op.Question = key
		if op, err = g.question(op, c.policy, &c.asked, c.decision); err != nil {
			return g.unrecorded(c, err)
		}
		grant, err := g.granted(op)
		if err == nil && grant != nil {
			op.State, op.Grant, op.Votes, op.Expires, op.GrantFor = approvals.Executing, grant.ID, grant.Votes, time.Time{}, 0
			var answer Result
			if answer, err = g.change(ctx, c, op, grant); err == nil {
				return answer
			}
			if errors.Is(err, ErrConflict) {
				continue // it was used or taken back at the same time
			}
		}
		if err != nil {
			return g.unrecorded(c, err)
		}
		if !g.waiting.enter(op, g.MaxPending) {
			return g.tooManyQuestions(c)
		}
		g.findChannel(ctx, c, &op)
		requested := g.requestedEntry(op)
		err = g.commit(Batch{
			Entries:    append(c.intent, g.decidedEntry(c.op, c.Principal, c.Session, c.Tool, c.decision), requested),
			Operations: []approvals.Operation{op},
			Question:   &Question{Key: key, Op: op.ID, Was: was},
		})
		if err != nil {
			g.waiting.leave(op.ID)
		}
		if errors.Is(err, ErrConflict) {
			continue // the same call came in twice at once; join the other
		}
		if err != nil {
			return g.unrecorded(c, err)
		}
		g.expireLater(op)
		return g.wait(ctx, op.ID, g.Wait, c.Progress)
	}
}

// coolingDown answers a call that was rejected a moment ago.
func (g *Gate) coolingDown(c *call, asked approvals.Operation) Result {
	r := g.deny(c, policy.Decision{
		Effect: policy.Deny, Rules: []string{"cooldown:" + asked.ID}, Digest: c.decision.Digest,
		Reason: "an approver rejected the same call: " + asked.Reason,
	})
	if r.Status == Denied {
		r.NextStep = "Take the reason into account. The same call is refused until " + asked.Updated.Add(g.Cooldown).UTC().Format(time.RFC3339) + "."
	}
	return r
}

// join makes a repeated call wait for the question that is already open.
func (g *Gate) join(ctx context.Context, c *call, asked approvals.Operation) Result {
	decided := g.decidedEntry(c.op, c.Principal, c.Session, c.Tool, c.decision)
	decided.Record.Approval = &audit.Approval{State: string(asked.State), PlanDigest: c.planDigest, Reason: "joins operation " + asked.ID}
	if err := g.commit(Batch{Entries: append(c.intent, decided)}); err != nil {
		return g.unrecorded(c, err)
	}
	return g.wait(ctx, asked.ID, g.Wait, c.Progress)
}

// tooManyQuestions answers an agent that has as many questions open as it may.
func (g *Gate) tooManyQuestions(c *call) Result {
	r := g.deny(c, policy.Decision{
		Effect: policy.Deny, Digest: c.decision.Digest,
		Reason: fmt.Sprintf("%d of your calls wait for approval or were just rejected or withdrawn, and nobody may ask more than that at once (approvals.maxPending)", g.MaxPending),
	})
	if r.Status == Denied {
		r.NextStep = "Nothing was changed. Wait until some are decided: list_operations shows them, and cancel_operation withdraws what is no longer needed."
	}
	return r
}

// findChannel takes the channel from the label of the namespace, where no rule
// names one. Without it the question goes where questions go.
func (g *Gate) findChannel(ctx context.Context, c *call, op *approvals.Operation) {
	if g.ChannelLabel == "" || len(op.Channels) > 0 {
		return
	}
	if c.asked.Namespaces == nil {
		if err := g.look(ctx, c.op, &c.asked, policy.NeedNamespace); err != nil {
			g.Log.Warn("reading which channel a namespace wants", "op", c.op, "err", audit.MaskText(err.Error()))
			return
		}
	}
	for _, namespace := range c.asked.Namespaces {
		meta, _ := namespace["metadata"].(map[string]any)
		labels, _ := meta["labels"].(map[string]any)
		if channel, _ := labels[g.ChannelLabel].(string); channel != "" && !slices.Contains(op.Channels, channel) {
			op.Channels = append(op.Channels, channel)
		}
	}
}

// question fills in what the approver is asked and what consent is bound to.
func (g *Gate) question(op approvals.Operation, set *policy.Set, c *policy.Call, d policy.Decision) (approvals.Operation, error) {
	previews := c.Previews
	digest, err := action.PreviewDigest(previews, g.digestKey(op.Plan))
	if err != nil {
		return op, err
	}
	op.PreviewDigest, op.UIDs = digest, uids(previews)
	op.Diffs, op.Names = make([][]action.Change, len(previews)), make([]map[string]string, len(previews))
	for i, p := range previews {
		op.Diffs[i] = audit.MaskDiff(op.Plan.Actions[i], p)
		op.Names[i] = p.ListNames()
	}
	op.Requirements = requirements(d)
	op.Rules, op.Reason, op.Risks = d.Rules, d.Reason, d.Risks
	if op.GrantFor = 0; set.Grantable(c, d) && len(op.Kinds()) > 0 {
		op.GrantFor = g.GrantFor
	}
	for _, a := range d.Approvals {
		if a.Channel != "" && !slices.Contains(op.Channels, a.Channel) {
			op.Channels = append(slices.Clone(op.Channels), a.Channel)
		}
	}
	for i, p := range previews {
		if hidesCode(op.Plan.Actions[i], p.Diff, op.Diffs[i]) {
			op.Risks = append(slices.Clone(op.Risks), "what is masked could be code")
			op.GrantFor = 0
			break
		}
	}
	op.Expires = approvals.Expiry(op.Requirements, g.Now())
	return op, nil
}

// hidesCode reports whether masking took from the differences what could be code:
// a command line, or a script in a ConfigMap: an approver must not take *** for a password alone.
func hidesCode(a action.Action, diff, shown []action.Change) bool {
	secret := a.Resource.GroupResource() == "secrets" // all of whose values are masked, whatever they are
	for i, c := range diff {
		if reflect.DeepEqual(c.New, shown[i].New) {
			continue
		}
		_, text := c.New.(string)
		segments := strings.Split(c.Path, "/")
		argument := slices.Contains(segments, "args") || slices.Contains(segments, "command")
		if (argument || !text) && audit.HidesCode(c.New) || !secret && audit.MaskedCode(c.New, shown[i].New) {
			return true
		}
	}
	return false
}

func requirements(d policy.Decision) []approvals.Requirement {
	out := make([]approvals.Requirement, len(d.Approvals))
	for i, a := range d.Approvals {
		out[i] = approvals.Requirement{Rule: a.Rule, Approvers: a.Approvers, Count: a.Count, Expires: a.Expires, ReasonRequired: a.ReasonRequired}
	}
	return out
}

func (g *Gate) requestedEntry(op approvals.Operation) Entry {
	e := g.approvalEntry(audit.ApprovalRequested, op)
	for _, r := range op.Requirements {
		e.Record.Approval.Needs = append(e.Record.Approval.Needs, r.String())
	}
	e.Record.Approval.Expires, e.Record.Approval.Channels = op.Expires.UTC(), op.Channels
	return withPayload(e.Record, op.Diffs)
}

// questionKey names a caller's call: who and for whom, and which requests, or what
// tells it from others instead. What an agent does for one person must not be
// decided by another person for whom it asks the same.
func (c *call) questionKey() string {
	sum := sha256.Sum256([]byte(callerOf(c.Principal) + "\n" + cmp.Or(c.Same, c.planDigest)))
	return hex.EncodeToString(sum[:])
}

// progressEvery is how often a waiting call says that it waits; some clients
// take that as a sign of life and extend their own time limit.
const progressEvery = 10 * time.Second

// wait answers as soon as the operation is closed, or with where it stands when
// the time is over or the caller is gone. Neither does anything to the operation.
func (g *Gate) wait(ctx context.Context, id string, limit time.Duration, progress func(string)) Result {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		op, over, err := g.waitOnce(ctx, id, tick.C, progress)
		if err != nil {
			return failed(id, err)
		}
		if over {
			return describe(op)
		}
	}
}

// waitOnce waits for one change, tick or the end of ctx. It listens before it
// looks, so that no change falls between.
func (g *Gate) waitOnce(ctx context.Context, id string, tick <-chan time.Time, progress func(string)) (op approvals.Operation, over bool, err error) {
	changed, release := g.bell.listen(id)
	defer release()
	if op, err = g.Store.Operation(id); err != nil {
		return op, true, err
	}
	if !op.State.Open() || op.State == approvals.Unknown {
		return op, true, nil
	}
	select {
	case <-changed:
		return op, false, nil
	case <-tick:
		if progress != nil {
			progress("waiting for approval until " + op.Expires.UTC().Format(time.RFC3339))
		}
		return op, false, nil
	case <-ctx.Done():
	case <-g.background.Done():
	}
	return op, true, nil
}

// operationCall answers the tools about the caller's own operations. Another
// principal's operation is not found, as if it did not exist.
func (g *Gate) operationCall(ctx context.Context, c *call) Result {
	if c.Operation.Verb == tools.ListOperations {
		return g.listOperations(c)
	}
	op, err := g.Store.Operation(c.Operation.ID)
	if err == nil && callerOf(op.Principal) != callerOf(c.Principal) {
		err = ErrNotFound
	}
	intent := g.record(audit.ToolIntent, c.Operation.ID, c.Principal, c.Session, c.Tool)
	intent.Source, intent.Outcome = &c.Source, audit.Success
	intent.Tool.Args = maskedArgs(c.Args)
	if err != nil {
		intent.Op, intent.Outcome, intent.Error = c.op, audit.Denied, recordError(err)
	}
	if err := g.commit(Batch{Entries: []Entry{{Record: intent}}}); err != nil {
		return g.unrecorded(c, err)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return Result{Status: Failed, Op: c.Operation.ID, Reason: "you have no operation with this id", NextStep: "list_operations shows those you have. Reads, and calls that were refused before they began, are not kept."}
	case err != nil:
		return failed(c.Operation.ID, err)
	}
	switch c.Operation.Verb {
	case tools.WaitOperation:
		return g.wait(ctx, op.ID, min(c.Operation.Wait, tools.MaxWait), c.Progress)
	case tools.CancelOperation:
		return g.cancel(op.ID)
	}
	return describe(op)
}

// maxListed bounds the list of a caller's operations, maxSearched how many of
// all callers' are looked at for it.
const (
	maxListed   = 50
	maxSearched = 2000
)

// listOperations answers with the latest operations of the caller.
func (g *Gate) listOperations(c *call) Result {
	var lines []string
	searched := 0
	err := g.Store.Operations(func(op approvals.Operation) bool {
		searched++
		if callerOf(op.Principal) == callerOf(c.Principal) && (op.State.Open() || !c.Operation.OpenOnly) {
			line := op.ID + "  " + op.Created.UTC().Format(time.RFC3339) + "  " + strings.ToLower(string(op.State)) + "  " + op.Tool
			if len(op.Plan.Actions) > 0 {
				line += "  " + op.Plan.Actions[0].String()
			}
			if more := len(op.Plan.Actions) - 1; more > 0 {
				line += fmt.Sprintf(" and %d more", more)
			}
			lines = append(lines, line)
		}
		return len(lines) < maxListed && searched < maxSearched
	})
	intent := g.record(audit.ToolIntent, c.op, c.Principal, c.Session, c.Tool)
	intent.Source, intent.Outcome, intent.Tool.Args = &c.Source, audit.Success, maskedArgs(c.Args)
	if err != nil {
		intent.Outcome, intent.Error = audit.Failure, recordError(err)
	}
	if broken := g.commit(Batch{Entries: []Entry{{Record: intent}}}); broken != nil {
		return g.unrecorded(c, broken)
	}
	if err != nil {
		return failed(c.op, err)
	}
	text := "You have no such operations."
	if len(lines) > 0 {
		text = strings.Join(lines, "\n")
	}
	switch {
	case len(lines) == maxListed:
		text += fmt.Sprintf("\nThe latest %d are shown; older ones are found by their op.", maxListed)
	case searched == maxSearched:
		text += fmt.Sprintf("\nOnly the latest %d operations of all callers were looked at.", maxSearched)
	}
	return Result{Status: Succeeded, Op: c.op, Data: audit.MaskText(text)}
}

// cancel withdraws an operation that has not started.
func (g *Gate) cancel(id string) Result {
	op, err := g.update(id, func(op approvals.Operation) (approvals.Operation, Batch, error) {
		op, err := g.move(op, approvals.Cancelled)
		op.Reason = "withdrawn by the agent"
		return op, Batch{Entries: []Entry{g.approvalEntry(audit.ApprovalDecided, op)}}, err
	})
	if err != nil {
		now := describe(op)
		if op.State == approvals.Cancelled {
			return now
		}
		return Result{
			Status: Failed, Op: op.ID, Reason: "it cannot be withdrawn any more: it is " + strings.ToLower(string(op.State)),
			NextStep: cmp.Or(now.NextStep, "Call get_operation with this op to see how it ended."),
		}
	}
	return describe(op)
}

// Vote counts a person's answer to an operation. A refusal wraps one of the
// errors of approvals, or ErrNotFound, and changes nothing.
func (g *Gate) Vote(id string, p approvals.Person, ballot approvals.Ballot) (approvals.Operation, error) {
	ballot.Reason = audit.MaskText(ballot.Reason)
	op, err := g.update(id, func(op approvals.Operation) (approvals.Operation, Batch, error) {
		op, err := op.Vote(p, ballot, g.Now())
		op.Revision++
		voted := g.votedEntry(op, p, ballot)
		b := Batch{Entries: []Entry{voted}}
		if op.State != approvals.PendingApproval {
			b.Entries = append(b.Entries, g.approvalEntry(audit.ApprovalDecided, op))
		}
		if grant, ok := op.Granted(newID(), g.Now()); ok {
			op.Gave = grant.ID
			b.Entries, b.Grants = append(b.Entries, g.grantEntry(audit.GrantCreated, grant)), []approvals.Grant{grant}
		}
		return op, b, err
	})
	switch {
	case err == nil && op.State == approvals.Authorized:
		g.runLater(op.ID)
	case err != nil && !errors.Is(err, ErrNotFound):
		refused := g.votedEntry(op, p, ballot)
		refused.Record.Outcome = audit.Denied
		refused.Record.Error = &audit.Error{Type: "vote", Message: audit.MaskText(err.Error())}
		err = errors.Join(err, g.commit(Batch{Entries: []Entry{refused}}))
	}
	return op, err
}

// votedEntry says who answered what, and where.
func (g *Gate) votedEntry(op approvals.Operation, p approvals.Person, ballot approvals.Ballot) Entry {
	e := g.approvalEntry(audit.ApprovalVoted, op)
	a := e.Record.Approval
	a.By, a.Reason, a.Kind, a.Via, a.Sets = []string{p.String()}, ballot.Reason, ballot.Grant, p.Via, p.Sets
	if a.Vote = "reject"; ballot.Approve {
		a.Vote = "approve"
	}
	return e
}

// update changes a stored operation by compare-and-swap: change is called with
// the operation as stored, again whenever somebody else was quicker.
func (g *Gate) update(id string, change func(approvals.Operation) (approvals.Operation, Batch, error)) (approvals.Operation, error) {
	for {
		stored, err := g.Store.Operation(id)
		if err != nil {
			return stored, err
		}
		changed, b, err := change(stored)
		if err != nil {
			return stored, err
		}
		b.Operations = []approvals.Operation{changed}
		err = g.commit(b)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return stored, err
		}
		g.bell.ring(id)
		return changed, nil
	}
}

// expireLater closes a question when its time is over.
func (g *Gate) expireLater(op approvals.Operation) { g.expireIn(op.Expires.Sub(g.Now()), op.ID) }

// expireIn is told no more than the id: an operation can be large, and many can wait.
func (g *Gate) expireIn(wait time.Duration, id string) {
	time.AfterFunc(wait, func() {
		if g.background.Err() != nil {
			return // the next start takes it up
		}
		_, err := g.update(id, func(op approvals.Operation) (approvals.Operation, Batch, error) {
			if op.State != approvals.PendingApproval {
				return op, Batch{}, approvals.ErrNotPending
			}
			op, err := g.move(op, approvals.Expired)
			op.Reason = "nobody decided in time"
			return op, Batch{Entries: []Entry{g.approvalEntry(audit.ApprovalDecided, op)}}, err
		})
		if err != nil && !errors.Is(err, approvals.ErrNotPending) {
			g.Log.Error("expiring an operation", "op", id, "err", err)
			if errors.Is(err, ErrFull) {
				g.expireIn(retryAtMost, id)
			}
		}
	})
}
