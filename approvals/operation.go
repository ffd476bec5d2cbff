package approvals

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"countersign/action"
)

// State is where an Operation stands.
type State string

// The states of an Operation. The first four are open: something may still
// happen to it without anybody calling again.
const (
	PendingApproval State = "PENDING_APPROVAL"
	Authorized      State = "AUTHORIZED"
	Executing       State = "EXECUTING"
	Unknown         State = "UNKNOWN"

	Denied     State = "DENIED"
	Rejected   State = "REJECTED"
	Expired    State = "EXPIRED"
	Cancelled  State = "CANCELLED"
	Stale      State = "STALE"
	Succeeded  State = "SUCCEEDED"
	Failed     State = "FAILED"
	Partial    State = "PARTIAL"
	Reconciled State = "RECONCILED"
)

// next is the whole state machine: what is not listed cannot happen. The empty
// state is that of a call that has not been stored yet.
var next = map[State][]State{
	"":              {Denied, PendingApproval, Executing},
	PendingApproval: {Authorized, Rejected, Expired, Cancelled, Stale},
	Authorized:      {Executing, Denied, Expired, Cancelled, Stale},
	Executing:       {Succeeded, Failed, Partial, Unknown},
	Unknown:         {Reconciled},
}

// Open reports whether something may still happen to an operation in this state.
func (s State) Open() bool { return len(next[s]) > 0 }

// Operation is the durable life of one tool call.
type Operation struct {
	ID    string `json:"id"`
	State State  `json:"state"`
	// Revision counts the stored changes; it is what compare-and-swap compares.
	Revision  uint64           `json:"revision"`
	Principal action.Principal `json:"principal"`
	Session   string           `json:"session,omitempty"`
	Tool      string           `json:"tool"`
	Args      map[string]any   `json:"args,omitempty"` // masked
	// AgentReason is what the agent said why; its own words, never to be trusted.
	AgentReason   string      `json:"agent_reason,omitempty"`
	Plan          action.Plan `json:"plan"`
	PlanDigest    string      `json:"plan_digest"`
	PreviewDigest string      `json:"preview_digest,omitempty"`
	// Question is the key under which the same call finds this one while it waits.
	Question string `json:"question,omitempty"`
	// UIDs are the live objects' identities as previewed, one for each Action;
	// empty where there was no object or no preview.
	UIDs []string `json:"uids,omitempty"`
	// Diffs are what the approver is shown, one for each Action, masked.
	Diffs [][]action.Change `json:"diffs,omitempty"`
	// Names are, for each Action, the paths of list items that have a name, with
	// the name in the place of the number: an item's number says nothing about
	// another object.
	Names        []map[string]string `json:"names,omitempty"`
	Requirements []Requirement       `json:"requirements,omitempty"`
	Votes        []Vote              `json:"votes,omitempty"`
	Rules        []string            `json:"rules,omitempty"`
	// Risks are what the preview shows that an approver should not overlook.
	Risks   []string  `json:"risks,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	// Expires is when a pending operation can no longer be approved or started.
	Expires time.Time `json:"expires,omitzero"`
	// Supersedes and SupersededBy join a stale operation with the one that asks again.
	Supersedes   string `json:"supersedes,omitempty"`
	SupersededBy string `json:"superseded_by,omitempty"`
	// Drift says how what would change now differs from what Supersedes showed, masked.
	Drift []string `json:"drift,omitempty"`
	// Channels are the Slack channels that rules or the namespace name for this
	// question; none means the configured one.
	Channels []string `json:"channels,omitempty"`
	// GrantFor is for how long an approver may consent to this kind of change; 0
	// where only this one can be approved.
	GrantFor time.Duration `json:"grant_for,omitempty"`
	// Gave is the Grant that its votes made, which ends GrantFor after it was approved.
	Gave string `json:"gave,omitempty"`
	// Grant is the Grant under which it ran without a question of its own.
	Grant string `json:"grant,omitempty"`
	// Done counts the Actions that were sent and answered with success.
	Done int `json:"done,omitempty"`
	// Result is what the agent is told of the outcome, masked.
	Result string `json:"result,omitempty"`
	// Evidence is what reconciliation found: applied, not_applied or undeterminable.
	Evidence string `json:"evidence,omitempty"`
}

// Requirement is one rule's demand for consent.
type Requirement struct {
	Rule string `json:"rule"`
	// Approvers are the names of approver sets; a person in any of them counts.
	Approvers []string `json:"approvers"`
	// Count is how many distinct people must agree.
	Count int `json:"count"`
	// Expires is how long the question stays open.
	Expires time.Duration `json:"expires"`
	// ReasonRequired asks every approver to say why.
	ReasonRequired bool `json:"reason_required,omitempty"`
}

func (r Requirement) String() string {
	text := fmt.Sprintf("%d of %s", r.Count, strings.Join(r.Approvers, " or "))
	if r.ReasonRequired {
		text += ", each with a reason"
	}
	return text
}

// Vote is one person's answer.
type Vote struct {
	Person Person `json:"person"`
	Ballot
	Time time.Time `json:"time"`
}

// Ballot is what a person answers.
type Ballot struct {
	Approve bool   `json:"approve"`
	Reason  string `json:"reason,omitempty"`
	// Grant consents to this kind of change for the operation's GrantFor, not to
	// this one alone.
	Grant bool `json:"grant,omitempty"`
}

// MaxReason bounds a person's reason, in characters.
const MaxReason = 1000

// Errors that a caller may branch on. Each is a refusal that changes nothing.
var (
	// ErrNotPending says that the operation is no longer waiting for anybody.
	ErrNotPending = errors.New("not waiting for approval")
	// ErrNotApprover says that the person is in none of the approver sets.
	ErrNotApprover = errors.New("not an approver")
	// ErrBarred says that the person may not decide anything, whichever sets it is in.
	ErrBarred = errors.New("may not decide")
	// ErrSelfApproval says that the agent acts on this person's behalf.
	ErrSelfApproval = errors.New("own request")
	// ErrVoted says that the person has voted already.
	ErrVoted = errors.New("already voted")
	// ErrReason says that the vote lacks the reason that it must carry, or that
	// the reason is too long.
	ErrReason = errors.New("reason")
	// ErrNotGrantable says that this kind of change is approved one by one only.
	ErrNotGrantable = errors.New("only this one can be approved")
)

// To moves the operation into another state, or says why it cannot be there.
func (op Operation) To(s State, now time.Time) (Operation, error) {
	if !slices.Contains(next[op.State], s) {
		return op, fmt.Errorf("moving operation %s from %q to %q: no such step", op.ID, op.State, s)
	}
	op.State, op.Updated = s, now
	return op, nil
}

// Vote counts one person's answer. The operation that it returns is
// AUTHORIZED when every requirement is met, REJECTED after one rejection, and
// otherwise still PENDING_APPROVAL with the vote added.
func (op Operation) Vote(p Person, b Ballot, now time.Time) (Operation, error) {
	switch {
	case op.State != PendingApproval:
		return op, fmt.Errorf("%w: operation %s is %s%s", ErrNotPending, op.ID, op.State, op.decidedBy())
	case !now.Before(op.Expires):
		return op, fmt.Errorf("%w: operation %s expired at %s", ErrNotPending, op.ID, op.Expires.UTC().Format(time.RFC3339))
	case p.Barred != "":
		return op, fmt.Errorf("%w: %s: %s", ErrBarred, p.Name, p.Barred)
	case !slices.ContainsFunc(op.Requirements, func(r Requirement) bool { return r.admits(p) }):
		return op, fmt.Errorf("%w: %s is in none of the sets that may decide this: %v", ErrNotApprover, p.Name, op.ApproverSets())
	case p.is(op.Principal.OnBehalfOf, op.Principal.Username, op.Principal.Subject):
		return op, fmt.Errorf("%w: the agent acts on behalf of %s; somebody else has to decide", ErrSelfApproval, p.Name)
	case slices.ContainsFunc(op.Votes, func(v Vote) bool { return v.Person.same(p) }):
		return op, fmt.Errorf("%w: %s", ErrVoted, p.Name)
	case strings.TrimSpace(b.Reason) == "" && (!b.Approve || op.ReasonRequired(p)):
		return op, fmt.Errorf("%w required: say why (--reason on the command line)", ErrReason)
	case utf8.RuneCountInString(b.Reason) > MaxReason:
		return op, fmt.Errorf("%w too long: say it in %d characters", ErrReason, MaxReason)
	case b.Grant && (!b.Approve || op.GrantFor == 0):
		return op, fmt.Errorf("%w: %s", ErrNotGrantable, op.ID)
	}
	op.Votes = append(slices.Clone(op.Votes), Vote{Person: p, Ballot: b, Time: now})
	op.Updated = now
	switch {
	case !b.Approve:
		op.Reason = b.Reason
		return op.To(Rejected, now)
	case op.Missing() == 0:
		return op.To(Authorized, now)
	}
	return op, nil
}

// decidedBy says who closed the question, for whoever comes too late.
func (op Operation) decidedBy() string {
	switch {
	case len(op.Votes) == 0:
		return ""
	case op.State == Rejected:
		return ", rejected by " + op.Votes[len(op.Votes)-1].Person.Name
	}
	return ", approved by " + strings.Join(op.By(), ", ")
}

// Missing counts the approvals that are still needed, the largest of all
// requirements' shortfalls.
func (op Operation) Missing() int {
	missing := 0
	for _, r := range op.Requirements {
		got := 0
		for _, v := range op.Votes {
			if v.Approve && r.admits(v.Person) {
				got++
			}
		}
		missing = max(missing, r.Count-got)
	}
	return missing
}

// By names the people who approved.
func (op Operation) By() []string {
	var by []string
	for _, v := range op.Votes {
		if v.Approve {
			by = append(by, v.Person.String())
		}
	}
	return by
}

// Asked reports whether people were ever asked about it.
func (op Operation) Asked() bool { return len(op.Requirements) > 0 && op.Grant == "" }

// GaveUntil is when the grant that its votes made ends.
func (op Operation) GaveUntil() time.Time {
	if len(op.Votes) == 0 {
		return time.Time{}
	}
	return op.Votes[len(op.Votes)-1].Time.Add(op.GrantFor)
}

// ReasonRequired reports whether this person's approval must carry a reason.
func (op Operation) ReasonRequired(p Person) bool {
	return slices.ContainsFunc(op.Requirements, func(r Requirement) bool { return r.ReasonRequired && r.admits(p) })
}

// ApproverSets are the sets whose people may decide, each once.
func (op Operation) ApproverSets() []string {
	var sets []string
	for _, r := range op.Requirements {
		for _, set := range r.Approvers {
			if !slices.Contains(sets, set) {
				sets = append(sets, set)
			}
		}
	}
	return sets
}

func (r Requirement) admits(p Person) bool {
	return slices.ContainsFunc(r.Approvers, func(set string) bool { return slices.Contains(p.Sets, set) })
}

// Expiry is when a question asked now with these requirements closes: the
// shortest of theirs.
func Expiry(requirements []Requirement, now time.Time) time.Time {
	expires := time.Time{}
	for _, r := range requirements {
		if t := now.Add(r.Expires); expires.IsZero() || t.Before(expires) {
			expires = t
		}
	}
	return expires
}
