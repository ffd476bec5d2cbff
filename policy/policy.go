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

// Need is what a decision hangs on beside the request itself.
type Need uint8

// What has to be read from the cluster before a decision can be made.
const (
	// NeedNamespace is the Namespace that the request is about (NamespaceOf).
	NeedNamespace Need = 1 << iota
	// NeedPreview is the Preview of the Action.
	NeedPreview
)

// next is what is read first: the Namespace, which may rule out all that a
// preview, the dearer of the two, would be needed for.
func (n Need) next() Need {
	if n&NeedNamespace != 0 {
		return NeedNamespace
	}
	return n
}

// Request is what a decision is about. What comes from the cluster is left out
// until a decision needs it.
type Request struct {
	Principal *action.Principal
	Tool      string
	Args      map[string]any
	Action    *action.Action
	Preview   *action.Preview
	// Namespace is the request's Namespace, nil when there is none;
	// NamespaceRead says that it was looked for.
	Namespace     map[string]any
	NamespaceRead bool
	Now           time.Time
}

// Approval is one matching rule's demand for consent.
type Approval struct {
	Rule           string
	Approvers      []string
	Count          int
	Expires        time.Duration
	ReasonRequired bool
	// NoGrant says that the answer is for the one call and never for its kind.
	NoGrant bool
	// Channel is the id of the Slack channel where people are asked, empty for
	// the one that the configuration names.
	Channel string
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
	// Needs is not 0 when the decision hangs on what has not been read yet;
	// Effect is then not to be used.
	Needs Need
	// Risks are what the Preview shows that nobody should overlook.
	Risks []string
	// Shadow is what the decision would be if the rules in mode shadow were
	// enforced, where that is something else. ShadowNeeds is what it hangs on.
	Shadow      *Shadow
	ShadowNeeds Need
	// Digest is that of the set which decided.
	Digest string
}

// Shadow is a decision that is recorded and not enforced.
type Shadow struct {
	Effect Effect
	Rules  []string
	Reason string
}

// Set is the compiled policy of one directory. It does not change.
type Set struct {
	rules    []*rule
	limits   []*limit
	digest   string
	warnings []string
	// guardsOff are the guards that are not in force, sorted.
	guardsOff []string
	shadows   bool // some rule is in mode shadow
	ids       int  // of match fields
}

// Digest is "sha256:<hex>" over the names and bytes of the files and the
// built-in guards.
func (s *Set) Digest() string { return s.digest }

// Warnings are what the set's author should know though the set does what it
// says, such as rules that a denial makes void; "FILE:LINE: rule NAME: ...".
func (s *Set) Warnings() []string { return s.warnings }

type rule struct {
	name     string
	effect   Effect
	message  string
	match    match
	when     *condition // nil when always
	approval Approval
	shadow   bool
	guard    bool
	file     string
	line     int
}

// outcome is what a rule, whose match fields fit, says of a request.
type outcome struct {
	holds bool
	needs Need  // not 0 when it cannot be said yet
	err   error // when it cannot be evaluated
}

func (r *rule) evaluate(f *facts, t *target) outcome {
	needsNamespace := !f.req.NamespaceRead && t.namespace != ""
	if r.match.selector != nil {
		if needsNamespace {
			return outcome{needs: NeedNamespace}
		}
		if !r.match.selects(t, f.req.Namespace, r.effect == Allow) {
			return outcome{}
		}
	}
	if r.when == nil {
		return outcome{holds: true}
	}
	var needs Need
	if r.when.needs&NeedNamespace != 0 && needsNamespace {
		needs |= NeedNamespace
	}
	if r.when.needs&NeedPreview != 0 && f.req.Preview == nil && !f.req.Action.ReadOnly() {
		needs |= NeedPreview
	}
	if needs != 0 {
		return outcome{needs: needs}
	}
	budget := &f.enforced
	if r.shadow {
		budget = &f.shadow
	}
	holds, err := r.when.eval(f, budget)
	return outcome{holds: holds, err: err}
}

// Decide answers for one Action.
func (s *Set) Decide(req Request) Decision {
	f := &facts{req: &req}
	defer f.close()
	t := targetOf(&req)
	t.fit = make([]fit, s.ids)
	var enforced, all tally
	for _, r := range s.rules {
		if r.match.mismatch(&t, r.effect == Allow) != "" {
			continue
		}
		o := r.evaluate(f, &t)
		if !r.shadow {
			enforced.add(r, o)
		}
		if s.shadows {
			all.add(r, o)
		}
	}
	d := enforced.decision(req.Action)
	d.Digest = s.digest
	if d.Needs = d.Needs.next(); d.Needs != 0 {
		return d
	}
	d.Risks = f.risks()
	if !s.shadows {
		return d
	}
	other := all.decision(req.Action)
	d.ShadowNeeds = other.Needs.next()
	if other.Needs == 0 && (other.Effect != d.Effect || !slices.Equal(other.Rules, d.Rules)) {
		d.Shadow = &Shadow{Effect: other.Effect, Rules: other.Rules, Reason: other.Reason}
	}
	return d
}

// Could reports whether the principal could be allowed to use the tool at all,
// by attributes alone: some rule gives it something within one of the scopes
// that no rule takes away without looking at the request. tools/list shows what
// this allows, and the gate refuses on it before it touches a cluster. When it
// answers no, the Decision says why.
func (s *Set) Could(p *action.Principal, tool string, scopes []action.Scope) (Decision, bool) {
	return s.CouldIn("", p, tool, scopes)
}

// CouldIn is Could for one cluster; "" is any.
func (s *Set) CouldIn(cluster string, p *action.Principal, tool string, scopes []action.Scope) (Decision, bool) {
	refused := Decision{Effect: Deny, Reason: "no policy rule allows this principal to use " + tool, Digest: s.digest}
	for _, scope := range scopes {
		given := false
		var taken *rule
		for _, r := range s.rules {
			if r.shadow || r.match.caller(p, tool) != "" {
				continue
			}
			switch {
			case r.effect != Deny:
				given = given || r.match.scope(scope, r.effect == Allow) && (cluster == "" || r.match.clusters.match(cluster))
			case r.when == nil && r.match.wholeScope(cluster, scope):
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

// tally collects the rules that apply to one request.
type tally struct {
	denied, approvals, allowed []*rule
	failures                   []string
	needs                      Need
	more                       Need // of rules that could do no more than allow
	hope                       bool // some rule that is not decided yet could allow it
}

func (t *tally) add(r *rule, o outcome) {
	switch {
	case o.needs != 0 && r.effect == Allow && r.when == nil:
		t.more |= o.needs
		t.hope = true
	case o.needs != 0:
		t.needs |= o.needs
		t.hope = t.hope || r.effect != Deny
	case o.err != nil:
		// Whatever its effect would be: a rule that cannot be evaluated denies.
		t.denied = append(t.denied, r)
		t.failures = append(t.failures, fmt.Sprintf("rule %s could not be evaluated: %v", r.name, o.err))
	case !o.holds:
	case r.effect == Deny:
		t.denied = append(t.denied, r)
		t.failures = append(t.failures, r.denial())
	case r.effect == RequireApproval:
		t.approvals = append(t.approvals, r)
	default:
		t.allowed = append(t.allowed, r)
	}
}

func (t *tally) decision(a *action.Action) Decision {
	needs := t.needs
	if len(t.allowed)+len(t.approvals) == 0 {
		needs |= t.more
	}
	switch {
	case len(t.denied) > 0:
		return Decision{Effect: Deny, Rules: names(t.denied), Reason: strings.Join(t.failures, "; ")}
	case len(t.allowed)+len(t.approvals) == 0 && !t.hope:
		// Also where a denial hangs on the object: nothing has to be read for it.
		return Decision{Effect: Deny, Reason: "no policy rule allows " + a.String()}
	case needs != 0:
		return Decision{Needs: needs}
	case len(t.approvals) > 0:
		out := Decision{Effect: RequireApproval, Rules: names(t.approvals)}
		var reasons []string
		for _, r := range t.approvals {
			out.Approvals = append(out.Approvals, r.approval)
			if r.message != "" {
				reasons = append(reasons, r.message)
			}
		}
		if out.Reason = strings.Join(reasons, "; "); out.Reason == "" {
			out.Reason = "policy asks for approval: " + strings.Join(out.Rules, ", ")
		}
		return out
	}
	return Decision{Effect: Allow, Rules: names(t.allowed)}
}

// Strictest combines the decisions on the Actions of one Plan: the strictest
// effect wins, with the rules, reasons and requirements of all that share it.
func Strictest(decisions []Decision) Decision {
	out := strictest(decisions)
	if !slices.ContainsFunc(decisions, func(d Decision) bool { return d.Shadow != nil }) {
		return out
	}
	shadows := make([]Decision, len(decisions))
	for i, d := range decisions {
		shadows[i] = Decision{Effect: d.Effect, Rules: d.Rules, Reason: d.Reason}
		if s := d.Shadow; s != nil {
			shadows[i] = Decision{Effect: s.Effect, Rules: s.Rules, Reason: s.Reason}
		}
	}
	out.Shadow = nil
	if s := strictest(shadows); s.Effect != out.Effect || !slices.Equal(s.Rules, out.Rules) {
		out.Shadow = &Shadow{Effect: s.Effect, Rules: s.Rules, Reason: s.Reason}
	}
	return out
}

func strictest(decisions []Decision) Decision {
	var out Decision
	for _, d := range decisions {
		needs, shadowNeeds, risks := out.Needs|d.Needs, out.ShadowNeeds|d.ShadowNeeds, out.Risks
		for _, risk := range d.Risks {
			risks = appendNew(risks, risk)
		}
		switch {
		case rank(d.Effect) > rank(out.Effect):
			out = d
		case d.Effect == out.Effect:
			out = join(out, d)
		}
		out.Needs, out.ShadowNeeds, out.Risks, out.Digest = needs, shadowNeeds, risks, d.Digest
	}
	if out.Effect == Deny {
		out.Needs, out.ShadowNeeds = 0, 0 // nothing that is read could undo it
	}
	return out
}

// join adds what led to a decision of the same effect.
func join(out, d Decision) Decision {
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
	return append(slices.Clip(list), s)
}
