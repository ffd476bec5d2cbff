package policy

import (
	"time"

	"countersign/action"
)

// Read is what was read from the clusters for the decision on a Plan: one of
// each for every Action, or nil where it was not.
type Read struct {
	Previews   []action.Preview
	Namespaces []map[string]any // nil where there is none
}

// Call is one tool call, planned.
type Call struct {
	Principal *action.Principal
	Plan      action.Plan
	Args      map[string]any
	Now       time.Time
	Read
}

// Request is what is asked about one Action of the call.
func (c *Call) Request(i int) Request {
	req := Request{Principal: c.Principal, Tool: c.Plan.Tool, Args: c.Args, Action: &c.Plan.Actions[i], Now: c.Now}
	if c.Previews != nil {
		req.Preview = &c.Previews[i]
	}
	if c.Namespaces != nil {
		req.Namespace, req.NamespaceRead = c.Namespaces[i], true
	}
	return req
}

// DecideCall decides every Action of a call; the strictest answer counts.
func (s *Set) DecideCall(c *Call) Decision {
	decisions := make([]Decision, len(c.Plan.Actions))
	for i := range c.Plan.Actions {
		decisions[i] = s.Decide(c.Request(i))
	}
	d := Strictest(decisions)
	if d.Effect == "" && d.Needs == 0 { // a plan without Actions is nothing that anybody allowed
		d = Decision{Effect: Deny, Reason: "the call would do nothing", Digest: s.digest}
	}
	return d
}

// Why says what something is read for.
type Why int

// The reasons to read.
const (
	// ToDecide: without it there is no decision.
	ToDecide Why = iota
	// ToShow: an approver is to see it, and several changes are to be known as
	// possible before the first is made.
	ToShow
	// ToWatch: only rules in mode shadow look at it.
	ToWatch
)

// Next is what is to be read after this decision on the call, and what for; 0
// when it is final.
func (c *Call) Next(d Decision) (Need, Why) {
	changes := 0
	for _, a := range c.Plan.Actions {
		if !a.ReadOnly() {
			changes++
		}
	}
	switch {
	case d.Needs != 0:
		return d.Needs, ToDecide
	case c.Previews == nil && (d.Effect == RequireApproval || d.Effect == Allow && changes > 1):
		return NeedPreview, ToShow
	case d.Effect != Deny:
		return d.ShadowNeeds, ToWatch
	}
	return 0, ToDecide
}
