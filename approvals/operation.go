package approvals

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	Diffs        [][]action.Change `json:"diffs,omitempty"`
	Requirements []Requirement     `json:"requirements,omitempty"`
	Votes        []Vote            `json:"votes,omitempty"`
	Rules        []string          `json:"rules,omitempty"`
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

// Person is who casts a vote, as the approver's channel identified them.
type Person struct {
	// ID is unique and stable: "local:1000" is the user id that the kernel
	// reports at the other end of the admin socket.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Sets are the approver sets that the person is in now.
	Sets []string `json:"sets"`
}

// Vote is one person's answer.
type Vote struct {
	Person  Person    `json:"person"`
	Approve bool      `json:"approve"`
	Reason  string    `json:"reason,omitempty"`
	Time    time.Time `json:"time"`
}

// Errors that a caller may branch on. Each is a refusal that changes nothing.
var (
	// ErrNotPending says that the operation is no longer waiting for anybody.
	ErrNotPending = errors.New("not waiting for approval")
	// ErrNotApprover says that the person is in none of the approver sets.
	ErrNotApprover = errors.New("not an approver")
	// ErrSelfApproval says that the agent acts on this person's behalf.
	ErrSelfApproval = errors.New("own request")
	// ErrVoted says that the person has voted already.
	ErrVoted = errors.New("already voted")
	// ErrReasonRequired says that the vote lacks the reason that it must carry.
	ErrReasonRequired = errors.New("reason required")
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
func (op Operation) Vote(p Person, approve bool, reason string, now time.Time) (Operation, error) {
	if op.State != PendingApproval {
		return op, fmt.Errorf("%w: operation %s is %s", ErrNotPending, op.ID, op.State)
	}
	if !now.Before(op.Expires) {
		return op, fmt.Errorf("%w: operation %s expired at %s", ErrNotPending, op.ID, op.Expires.Format(time.RFC3339))
	}
	asked := slices.ContainsFunc(op.Requirements, func(r Requirement) bool { return r.admits(p) })
	if !asked {
		return op, fmt.Errorf("%w: %s is in none of the sets that may decide this: %v", ErrNotApprover, p.Name, op.approverSets())
	}
	if own := op.Principal.OnBehalfOf; own != "" && (own == p.Name || own == p.ID) || op.Principal.Username == p.Name {
		return op, fmt.Errorf("%w: the agent acts on behalf of %s; somebody else has to decide", ErrSelfApproval, p.Name)
	}
	if slices.ContainsFunc(op.Votes, func(v Vote) bool { return v.Person.ID == p.ID }) {
		return op, fmt.Errorf("%w: %s", ErrVoted, p.Name)
	}
	if strings.TrimSpace(reason) == "" && (!approve || op.reasonRequired(p)) {
		return op, fmt.Errorf("%w: say why with --reason", ErrReasonRequired)
	}
	op.Votes = append(slices.Clone(op.Votes), Vote{Person: p, Approve: approve, Reason: reason, Time: now})
	op.Updated = now
	switch {
	case !approve:
		op.Reason = reason
		return op.To(Rejected, now)
	case op.Missing() == 0:
		return op.To(Authorized, now)
	}
	return op, nil
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
			by = append(by, v.Person.Name+" ("+v.Person.ID+")")
		}
	}
	return by
}

func (op Operation) reasonRequired(p Person) bool {
	return slices.ContainsFunc(op.Requirements, func(r Requirement) bool { return r.ReasonRequired && r.admits(p) })
}

func (op Operation) approverSets() []string {
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
