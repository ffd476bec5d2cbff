package policy

import (
	"slices"
	"strings"
	"sync"

	"countersign/action"
	"countersign/strictyaml"
)

// grantable is what a grant may be about at most, by the request alone. It is
// matched as an allow rule is: the whole of the request has to fit.
var grantable, _ = compileMatch(matchSpec{
	Verbs: []string{action.Get, action.List, action.Create, action.Update, action.Patch},
	// Without exec, attach, portforward, proxy and ephemeralcontainers, which run
	// something or lead to what runs, without token, approval and binding, and
	// without whatever is invented next.
	Subresources: []string{"", "resize", "scale", "status"},
	Resources: []string{
		// Credentials, and what controllers make them from.
		"!*secret*", "!*token*", "!serviceaccounts", "!*.certificates.k8s.io", "!*.authentication.k8s.io",
		// Who may do what; other distributions serve it under groups of their own.
		"!*.authorization.k8s.io", "!roles.*", "!clusterroles.*", "!rolebindings.*", "!clusterrolebindings.*",
		"!securitycontextconstraints.*",
		// What sees, changes or refuses the requests of everybody.
		"!*.admissionregistration.k8s.io", "!*webhook*", "!*.kyverno.io", "!*.gatekeeper.sh", "!*.kubewarden.io",
		"!*.apiextensions.k8s.io", "!*.apiregistration.k8s.io",
		// What reaches beyond the namespace that a grant is for.
		"!nodes", "!namespaces", "!persistentvolumes", "!*.argoproj.io", "!*.fluxcd.io",
		// Who may talk to whom.
		"!networkpolicies.*", "!*.cilium.io", "!*.projectcalico.org",
	},
})

// starter is the tool that starts what a CronJob says already: it makes a Job,
// and the agent has no say in what that runs (see guards.yaml).
const starter = "trigger_cronjob"

// builtIn are all the guards, whatever a set switches off. They are compiled when
// the first question is asked, and once.
var builtIn = sync.OnceValue(func() []*rule {
	l := loader{set: &Set{}, names: map[string]strictyaml.Problem{}}
	l.read("guards.yaml", guards, true)
	if len(l.problems) > 0 { // in a file of ours: no set would load
		panic(l.problems)
	}
	return l.set.rules
})

// Guarded reports whether a built-in guard is about the call: one that matches
// an Action of it and whose condition holds or cannot be told, because something
// was not read or the condition fails. Guards that are switched off count as
// well: a set that asks people instead of denying still takes what the guard is
// about for something that turns a small permission into a large one.
func (s *Set) Guarded(c *Call) bool {
	for i := range c.Plan.Actions {
		req := c.Request(i)
		if guardedRequest(&req) {
			return true
		}
	}
	return false
}

func guardedRequest(req *Request) bool {
	f, t := &facts{req: req}, targetOf(req)
	defer f.close()
	return slices.ContainsFunc(builtIn(), func(r *rule) bool {
		if r.match.mismatch(&t, r.effect == Allow) != "" {
			return false
		}
		o := r.evaluate(f, &t)
		return o.holds || o.needs != 0 || o.err != nil
	})
}

// Grantable reports whether the person who is asked about a call may, with the
// one answer, consent to more calls of its kind for a time. d is what DecideCall
// says of the call with its previews.
//
// Under a grant nobody looks at the values that are written. So a grant is only
// for what stays small whatever the values are: never for what removes something
// or cannot be undone, what runs a command, hands out credentials or
// permissions, changes what others may do, or reaches beyond its namespace; not
// for what a guard is about, in force or not; not for what shows a risk, but for
// another image, which is what grants are for in the first place; and not where
// one of the rules that ask says grant: never. What cannot be told is not granted.
func (s *Set) Grantable(c *Call, d Decision) bool {
	if d.Effect != RequireApproval || d.Needs != 0 || c.Plan.ReadOnly() || len(c.Previews) != len(c.Plan.Actions) {
		return false
	}
	if slices.ContainsFunc(d.Approvals, func(a Approval) bool { return a.NoGrant }) || slices.ContainsFunc(d.Risks, tooRisky) {
		return false
	}
	changes := false
	for i := range c.Plan.Actions {
		req := c.Request(i)
		if !grantableRequest(&req) {
			return false
		}
		changes = changes || len(req.Preview.Diff) > 0
	}
	return changes && !s.Guarded(c)
}

func grantableRequest(req *Request) bool {
	t := targetOf(req)
	if req.Action.Removes() || grantable.mismatch(&t, true) != "" {
		return false
	}
	if req.Action.ReadOnly() {
		return true
	}
	if req.Preview.Result == nil { // nobody saw what it would make
		return false
	}
	if slices.ContainsFunc(req.Preview.Diff, sensitive) {
		return false
	}
	// Again, and of this Preview: a decision from before it has no risks.
	f := &facts{req: req}
	if slices.ContainsFunc(f.risks(), tooRisky) {
		return false
	}
	// RiskCommandChanged is about objects that are there. A new one that holds a
	// pod runs whatever the caller writes into it.
	return req.Preview.Live != nil || len(f.pods().pods) == 0 || req.Tool == starter
}

// sensitive are the parts of a pod that make something else of it whatever image it
// runs: the environment (LD_PRELOAD), what is mounted, whom it runs as.
func sensitive(c action.Change) bool {
	return slices.ContainsFunc(strings.Split(c.Path, "/"), func(segment string) bool {
		return slices.Contains([]string{"env", "envFrom", "volumes", "volumeMounts", "securityContext", "command", "args", "lifecycle"}, segment)
	})
}

// tooRisky is true of every risk but one, also of those that are added later.
func tooRisky(risk string) bool { return risk != RiskImageChanged }
