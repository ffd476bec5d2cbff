package gate

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// Status is how a call stands when it is answered.
type Status string

// The statuses that are named in code; the others are an operation's state in
// lower case. Everything but Succeeded and Pending is an error to the agent.
const (
	Succeeded Status = "succeeded"
	Pending   Status = "pending_approval"
	Denied    Status = "denied"
	Failed    Status = "failed"
	Unknown   Status = "unknown"
)

// Result is what the agent is told.
type Result struct {
	Status  Status `json:"status"`
	Op      string `json:"op"`
	Summary string `json:"summary,omitempty"`
	// Rule names the policy rules that led to a denial or a question.
	Rule     string           `json:"rule,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Approval *ApprovalSummary `json:"approval,omitempty"`
	// NextStep tells a model what it can do now.
	NextStep string `json:"next_step,omitempty"`
	// Data is what a successful read found: text from the cluster, masked. It
	// is data and must be shown as such.
	Data string `json:"-"`
}

// Failed reports whether the call did not do what was asked and will not by itself.
func (r Result) Failed() bool { return r.Status != Succeeded && r.Status != Pending }

// ApprovalSummary is what the agent may know of the human part.
type ApprovalSummary struct {
	Approvers []string  `json:"approvers"`
	Missing   int       `json:"missing"`
	Expires   time.Time `json:"expires"`
}

// lockRule begins the name under which results and records tell of a lock.
const lockRule = "lock:"

const lockedStep = "An operator of Countersign has stopped this. Do not try to reach the same by another way; tell the person you work for, and wait until the lock is removed."

func waitStep(op string) string {
	return fmt.Sprintf("A person has to approve this. Call wait_for_operation with op %q; do not send the same call again. It runs by itself once approved.", op)
}

// malformed answers a call that cannot be understood, and records it.
func (g *Gate) malformed(c *call, err error) Result {
	r := g.record(audit.CallRefused, c.op, c.Principal, c.Session, c.Tool)
	r.Source, r.Outcome, r.Error = &c.Source, audit.Denied, recordError(err)
	if err := g.commit(Batch{Entries: []Entry{{Record: r}}}); err != nil {
		return g.unrecorded(c, err)
	}
	return failed(c.op, err)
}

// deny answers what policy refuses, and records intent and decision.
func (g *Gate) deny(c *call, d policy.Decision) Result {
	entries := c.intent
	if c.planDigest == "" && !c.recorded {
		entries = []Entry{g.intentEntry(c)} // refused before there was a plan
	}
	c.decision = d
	op := g.newOperation(c, approvals.Denied)
	op.Plan = withoutBodies(op.Plan) // nobody sends it, and whoever is denied may ask again and again
	decided := g.decidedEntry(c.op, c.Principal, c.Session, c.Tool, d)
	decided.Record.Actions = append(recordActions(op.Plan, nil, nil), c.notSent()...)
	entries = append(entries, decided)
	if err := g.commit(Batch{Entries: entries, Operations: []approvals.Operation{op}}); err != nil {
		return g.unrecorded(c, err)
	}
	return describe(op)
}

// notBegun answers what ends before anything is changed: a preview that
// failed, because the API server refuses it or cannot be asked, or no room for it.
func (g *Gate) notBegun(c *call, err error) Result {
	outcome := g.outcomeEntry(c.op, c.Principal, c.Session, c.Tool, c.Plan, nil, nil, err, c.start)
	if err := g.commit(Batch{Entries: append(c.intent, outcome)}); err != nil {
		return g.unrecorded(c, err)
	}
	return failed(c.op, err)
}

// unrecorded answers when the log could not take what must be in it: nothing
// is sent, and no result is given out.
func (g *Gate) unrecorded(c *call, err error) Result {
	g.Log.Error("storing a record", "op", c.op, "err", err)
	if errors.Is(err, ErrFull) {
		return Result{Status: Failed, Op: c.op, Reason: fullReason, NextStep: fullStep}
	}
	return Result{
		Status: Failed, Op: c.op,
		Reason:   "the audit log cannot take a record, so nothing is done",
		NextStep: "Tell the operators of Countersign; trying again will not help until they have mended it.",
	}
}

const (
	fullReason = "the audit log is full, so nothing is done"
	fullStep   = "Tell the operators of Countersign. The call can be sent again once they have made room; nothing was changed."
)

// failed describes an error for the agent: the API server's own words are kept,
// everything else only says what kind of thing went wrong.
func failed(op string, err error) Result {
	r := Result{Status: Failed, Op: op, NextStep: "Nothing was changed. Read the reason before trying again."}
	var refused *APIError
	var argument *tools.ArgumentError
	var locked *lockedError
	var nobody *ImpersonationError
	switch {
	case errors.As(err, &refused):
		what := "it"
		var one *refusal
		if errors.As(err, &one) {
			what = one.what
		}
		r.Reason = refusedBy(what, refused)
		r.NextStep = afterRefusal(refused)
	case errors.As(err, &argument):
		r.Reason, r.NextStep = err.Error(), "Correct the call and send it again. Nothing was changed."
	case errors.As(err, &locked):
		r.Reason, r.NextStep = err.Error(), lockedStep
	case errors.As(err, &nobody):
		r.Reason, r.NextStep = nobody.Reason, "Nothing was sent. Tell the operators of Countersign; trying again will not help until they have mended it."
	case errors.Is(err, ErrFull):
		r.Reason, r.NextStep = fullReason, fullStep
	case errors.Is(err, errBusy):
		r.Reason, r.NextStep = err.Error(), "Nothing was changed. Send the call again in a moment."
	default:
		r.Reason, r.NextStep = "the cluster could not be asked", "Try again in a moment; if it stays so, tell the operators of Countersign."
		if errors.Is(err, context.DeadlineExceeded) {
			r.Reason = "the cluster did not answer in time"
		}
	}
	r.Reason = audit.MaskText(r.Reason)
	if refused == nil {
		r.Reason = clip(r.Reason)
	}
	return r
}

// refusedBy is who refused what, and in which words.
func refusedBy(what string, err *APIError) string {
	if err.User != "" {
		return fmt.Sprintf("policy allows it, but the cluster's RBAC refused %s to you, who are its user %q: %s", what, err.User, said(err.Message))
	}
	return "the API server refused " + what + ": " + said(err.Message)
}

// refusal says which of several Actions an error is about.
type refusal struct {
	what string
	error
}

func (r *refusal) Unwrap() error { return r.error }

// refusedOne tells an error of one Action of a plan.
func refusedOne(plan action.Plan, a action.Action, doing string, err error) error {
	err = fmt.Errorf("%s%s: %w", doing, a, err)
	if len(plan.Actions) > 1 {
		return &refusal{a.String(), err}
	}
	return err
}

// afterRefusal is what an agent can do about the API server's refusal.
func afterRefusal(err *APIError) string {
	switch {
	case err.User != "":
		return "Nothing was changed. Do not try to reach the same by another way; tell the person you work for which role is missing in the cluster."
	case err.Code == http.StatusNotFound:
		return "Nothing was changed. Check the namespace and the name: list_namespaces and list_resources show what there is."
	case err.Code == http.StatusConflict && strings.HasPrefix(err.Message, "Apply failed with"):
		return `Nothing was changed. Leave these fields out, or send it again with force: true to take them over. The manager "countersign" is this server: its other tools set them.`
	case err.Code == http.StatusTooManyRequests:
		return "Nothing was changed. Wait until what it names has recovered, then send the call again."
	case err.Code == http.StatusForbidden && err.Reason == string(metav1.StatusReasonForbidden):
		return "Nothing was changed. Where it is this server's own credential that may not, tell the operators of Countersign."
	}
	return "Nothing was changed. Read the reason before trying again."
}

// said puts the API server's own words between marks that nobody who had a part
// in them, such as the author of a webhook or of an object's name, could know.
// They are data to whoever reads them.
func said(message string) string {
	var nonce [4]byte
	rand.Read(nonce[:])
	mark := "data-" + hex.EncodeToString(nonce[:])
	return "<" + mark + ">" + clip(audit.MaskText(message)) + "</" + mark + ">"
}

// describe tells an agent where an operation stands.
func describe(op approvals.Operation) Result {
	r := Result{Status: Status(strings.ToLower(string(op.State))), Op: op.ID, Rule: strings.Join(op.Rules, ", "), Reason: op.Reason}
	switch op.State {
	case approvals.PendingApproval:
		r.Summary = "waits for approval: " + planSummary(op)
		r.Approval = &ApprovalSummary{Approvers: approverSets(op), Missing: op.Missing(), Expires: op.Expires.UTC()}
		r.NextStep = waitStep(op.ID)
	case approvals.Authorized:
		r.Status, r.Summary = Pending, "approved and about to run: "+planSummary(op)
		r.NextStep = fmt.Sprintf("Call wait_for_operation with op %q.", op.ID)
	case approvals.Executing:
		r.Status, r.Summary = Pending, "is running: "+planSummary(op)
		r.NextStep = fmt.Sprintf("Call wait_for_operation with op %q.", op.ID)
	case approvals.Succeeded:
		r.Rule, r.Reason = "", ""
		switch {
		case op.Plan.ReadOnly():
			r.Data = op.Result
		case op.Plan.Runs(): // what a command wrote is as little to be trusted as a log
			r.Summary, r.Data = planSummary(op), op.Result
		default:
			r.Summary = op.Result
		}
	case approvals.Denied, approvals.Cancelled:
		switch {
		case strings.HasPrefix(r.Rule, lockRule):
			r.NextStep = lockedStep
		case op.State == approvals.Cancelled:
			r.NextStep = "It was withdrawn. Nothing was changed."
		default:
			r.NextStep = "Do not try to reach the same by another way. Ask for something that policy allows, or tell the person you work for."
		}
	case approvals.Rejected:
		r.NextStep = "An approver said no. Take the reason into account; do not send the same call again."
	case approvals.Expired:
		r.NextStep = "Nobody decided in time. Send the call again if it is still needed."
	case approvals.Stale:
		if op.SupersededBy == "" {
			r.NextStep = "What was approved cannot be done any more. Nothing was changed. Look at the live object, and send a new call if it is still needed."
			break
		}
		r.NextStep = fmt.Sprintf("What would change is no longer what was approved, so approvers are asked again. Call wait_for_operation with op %q.", op.SupersededBy)
	case approvals.Failed:
		if strings.HasPrefix(r.Rule, lockRule) {
			r.NextStep = "Nothing was changed. " + lockedStep
			break
		}
		r.NextStep = "Nothing was changed. Read the reason before trying again."
	case approvals.Partial:
		r.Summary, r.NextStep = op.Result, "Some of it was done. Look at the live objects before going on."
	case approvals.Unknown:
		r.NextStep = "It is not known whether this took effect; the server is looking. Call get_operation with this op, and do not send the call again before you know."
	case approvals.Reconciled:
		r.Status, r.Summary = Unknown, "after a break, the live object says: "+op.Evidence
		if op.Evidence == Applied {
			r.Status = Succeeded
		}
		r.NextStep = "Look at the live object before going on. The server does not run it again."
	}
	return r
}

func planSummary(op approvals.Operation) string {
	lines := make([]string, len(op.Plan.Actions))
	for i, a := range op.Plan.Actions {
		lines[i] = a.String()
	}
	return strings.Join(lines, ", ")
}

func approverSets(op approvals.Operation) []string {
	var sets []string
	for _, r := range op.Requirements {
		sets = append(sets, strings.Join(r.Approvers, " or "))
	}
	return sets
}
