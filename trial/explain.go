package trial

import (
	"context"
	"slices"

	"countersign/policy"
)

// Explanation is an Answer, with what every rule made of every request.
type Explanation struct {
	Answer
	// Risks are what the preview shows that nobody should overlook.
	Risks []string `json:"risks,omitempty"`
	// Approvals must all be met.
	Approvals []Approval `json:"approvals,omitempty"`
	// Shadow is the decision if rules in mode shadow were enforced, where that is another.
	Shadow   *Answer   `json:"shadow,omitempty"`
	Requests []Request `json:"requests"`
	// Unseen says why there is no preview that rules could have used.
	Unseen string `json:"unseen,omitempty"`
	// Limits are the budgets that the call would draw on.
	Limits []Limit `json:"limits,omitempty"`
}

// Request is one request of the call, and what the rules make of it.
type Request struct {
	Request string               `json:"request"`
	Rules   []policy.Explanation `json:"rules"`
}

// Approval is a rule's demand for consent.
type Approval struct {
	Rule           string   `json:"rule"`
	Approvers      []string `json:"approvers"`
	Count          int      `json:"count"`
	Expires        string   `json:"expires"`
	ReasonRequired bool     `json:"reasonRequired,omitempty"`
	// NoGrant and Channel are as in policy.Approval.
	NoGrant bool   `json:"noGrant,omitempty"`
	Channel string `json:"channel,omitempty"`
}

// Limit is a budget: so many calls in a while.
type Limit struct {
	Name   string `json:"name"`
	Calls  int    `json:"calls"`
	Per    string `json:"per"`
	By     string `json:"by"`
	Shadow bool   `json:"shadow,omitempty"`
}

// Explain decides as Decide does, and says of every rule whether it applied and
// why. It looks at all that can be had, so that rules say more than the
// decision needed.
func (w *World) Explain(ctx context.Context, c Call) Explanation {
	r, answer := w.plan(ctx, c)
	if r == nil {
		return Explanation{Answer: *answer}
	}
	if answer == nil {
		a := r.settle()
		answer = &a
	}
	d := answer.Policy
	out := Explanation{Answer: *answer, Risks: d.Risks, Requests: []Request{}}
	for _, a := range d.Approvals {
		out.Approvals = append(out.Approvals, Approval{a.Rule, a.Approvers, a.Count, a.Expires.String(), a.ReasonRequired, a.NoGrant, a.Channel})
	}
	if s := d.Shadow; s != nil {
		out.Shadow = &Answer{Decision: string(s.Effect), Rules: s.Rules, Reason: s.Reason}
	}
	if r.asked.Namespaces == nil {
		r.lookNamespaces()
	}
	if r.asked.Previews == nil && !r.asked.Plan.ReadOnly() {
		if err := r.lookPreviews(); err != nil {
			out.Unseen = err.Error()
		}
	}
	draws := func(limits []policy.Limit) {
		for _, l := range limits {
			limit := Limit{l.Name, l.Calls, l.Per.String(), l.By, l.Shadow}
			if !slices.Contains(out.Limits, limit) {
				out.Limits = append(out.Limits, limit)
			}
		}
	}
	for i := range r.asked.Plan.Actions {
		a := &r.asked.Plan.Actions[i]
		out.Requests = append(out.Requests, Request{a.String(), r.set.Explain(r.asked.Request(i))})
		draws(r.set.Limits(&r.Principal, r.Tool, a))
	}
	draws(r.set.CallLimits(&r.Principal, r.Tool))
	return out
}
