package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/action"
)

// Effect is what a rule does, and what a Decision is.
type Effect string

// The effects, from the weakest to the strictest.
const (
	Allow           Effect = "allow"
	RequireApproval Effect = "require_approval"
	Deny            Effect = "deny"
)

// Request is what a decision is about. Preview is nil until something needs it.
type Request struct {
	Principal *action.Principal
	Tool      string
	Args      map[string]any
	Action    *action.Action
	Preview   *action.Preview
	Now       time.Time
}

// Approval is one matching rule's demand for consent.
type Approval struct {
	Rule           string
	Approvers      []string
	Count          int
	Expires        time.Duration
	ReasonRequired bool
}

// Decision is the answer, with what led to it.
type Decision struct {
	Effect Effect
	// Rules are the names of the rules that led to the effect.
	Rules []string
	// Reason is a sentence for the caller.
	Reason string
	// Approvals are the requirements of every matching require_approval rule;
	// all must be met.
	Approvals []Approval
	// NeedsPreview means that the decision hangs on the object or the diff, and
	// Effect is not yet to be used.
	NeedsPreview bool
}

// Set is the compiled policy of one directory. It does not change.
type Set struct {
	rules  []*rule
	digest string
}

// Digest is "sha256:<hex>" over the names and bytes of the files.
func (s *Set) Digest() string { return s.digest }

type rule struct {
	name     string
	effect   Effect
	message  string
	match    match
	when     *condition // nil when always
	approval Approval
}

// Decide answers for one Action.
func (s *Set) Decide(req Request) Decision {
	d := decider{req: req}
	for _, r := range s.rules {
		if r.match.caller(req.Principal, req.Tool) && r.match.request(req.Action, r.effect == Allow) {
			d.apply(r)
		}
	}
	return d.decision()
}

// Could reports whether the principal could be allowed to use the tool at all,
// by attributes alone: some rule gives it something within one of the scopes
// that no rule takes away without looking at the request. tools/list shows what
// this allows, and the gate refuses on it before it touches a cluster. When it
// answers no, the Decision says why.
func (s *Set) Could(p *action.Principal, tool string, scopes []action.Scope) (Decision, bool) {
	refused := Decision{Effect: Deny, Reason: "no policy rule allows this principal to use " + tool}
	for _, scope := range scopes {
		given := false
		var taken *rule
		for _, r := range s.rules {
			if !r.match.caller(p, tool) {
				continue
			}
			switch {
			case r.effect != Deny:
				given = given || r.match.scope(scope)
			case r.when == nil && r.match.wholeScope(scope):
				taken = r
			}
		}
		if taken != nil {
			refused.Rules = appendNew(refused.Rules, taken.name)
			refused.Reason = taken.denial()
		} else if given {
			return Decision{}, true
		}
	}
	return refused, len(scopes) == 0
}

func (r *rule) denial() string {
	if r.message != "" {
		return r.message
	}
	return "rule " + r.name + " denies it"
}

// decider collects the rules that apply to one request.
type decider struct {
	req       Request
	vars      map[string]any // for CEL, built when the first condition is met
	denied    []*rule
	failures  []string
	approvals []*rule
	allowed   []*rule
	open      bool
}

func (d *decider) apply(r *rule) {
	if r.when != nil {
		if r.when.needsPreview && d.req.Preview == nil && !d.req.Action.ReadOnly() {
			d.open = true
			return
		}
		if d.vars == nil {
			d.vars = variables(d.req)
		}
		holds, err := r.when.eval(d.vars)
		if err != nil {
			// Whatever its effect would be: a rule that cannot be evaluated denies.
			d.denied = append(d.denied, r)
			d.failures = append(d.failures, fmt.Sprintf("rule %s could not be evaluated: %v", r.name, err))
			return
		}
		if !holds {
			return
		}
	}
	switch r.effect {
	case Deny:
		d.denied = append(d.denied, r)
		d.failures = append(d.failures, r.denial())
	case RequireApproval:
		d.approvals = append(d.approvals, r)
	case Allow:
		d.allowed = append(d.allowed, r)
	}
}

func (d *decider) decision() Decision {
	switch {
	case len(d.denied) > 0:
		return Decision{Effect: Deny, Rules: names(d.denied), Reason: strings.Join(d.failures, "; ")}
	case d.open:
		return Decision{NeedsPreview: true}
	case len(d.approvals) > 0:
		out := Decision{Effect: RequireApproval, Rules: names(d.approvals)}
		var reasons []string
		for _, r := range d.approvals {
			out.Approvals = append(out.Approvals, r.approval)
			if r.message != "" {
				reasons = append(reasons, r.message)
			}
		}
		if out.Reason = strings.Join(reasons, "; "); out.Reason == "" {
			out.Reason = "policy asks for approval: " + strings.Join(out.Rules, ", ")
		}
		return out
	case len(d.allowed) > 0:
		return Decision{Effect: Allow, Rules: names(d.allowed)}
	}
	return Decision{Effect: Deny, Reason: "no policy rule allows " + d.req.Action.String()}
}

// Strictest combines the decisions on the Actions of one Plan: the strictest
// effect wins, with the rules, reasons and requirements of all that share it.
func Strictest(decisions []Decision) Decision {
	var out Decision
	for _, d := range decisions {
		switch {
		case rank(d.Effect) > rank(out.Effect):
			needs := out.NeedsPreview || d.NeedsPreview
			out = d
			out.NeedsPreview = needs
		case d.Effect == out.Effect:
			out.NeedsPreview = out.NeedsPreview || d.NeedsPreview
			for _, name := range d.Rules {
				out.Rules = appendNew(out.Rules, name)
			}
			if d.Reason != "" && !strings.Contains(out.Reason, d.Reason) {
				out.Reason = strings.TrimPrefix(out.Reason+"; "+d.Reason, "; ")
			}
			for _, a := range d.Approvals {
				if !slices.ContainsFunc(out.Approvals, func(have Approval) bool { return have.Rule == a.Rule }) {
					out.Approvals = append(out.Approvals, a)
				}
			}
		default:
			out.NeedsPreview = out.NeedsPreview || d.NeedsPreview
		}
	}
	if out.Effect == Deny {
		out.NeedsPreview = false // nothing that a preview shows could undo it
	}
	return out
}

func rank(e Effect) int {
	return slices.Index([]Effect{"", Allow, RequireApproval, Deny}, e)
}

func names(rules []*rule) []string {
	out := make([]string, len(rules))
	for i, r := range rules {
		out[i] = r.name
	}
	slices.Sort(out)
	return out
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}
