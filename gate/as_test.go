package gate

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign/action"
	"countersign/approvals"
)

// names gives in whose name requests were sent since it was last called.
func (r *rig) names() (names []string) {
	r.cluster.mu.Lock()
	defer r.cluster.mu.Unlock()
	for _, p := range r.cluster.as {
		names = append(names, p.Username+" of "+strings.Join(p.Groups, ","))
	}
	r.cluster.as = nil
	return slices.Compact(names)
}

func (r *rig) wantNames(what string, want ...string) {
	r.t.Helper()
	if got := r.names(); !slices.Equal(got, want) {
		r.t.Errorf("%s: in the name of %q; want %q", what, got, want)
	}
}

// Every request of a call is sent in the name of its caller, and what was approved
// with the groups that the caller has by then.
func TestInWhoseName(t *testing.T) {
	r := newRig(t, askAlways)
	waits := r.scale(5)
	r.wantNames("the question", "bot of agents")
	bot := bot
	bot.Groups = []string{"agents", "more"}
	r.callAs(bot, "get_operation", `{"op":"`+waits.Op+`"}`)
	r.approve(waits.Op)
	r.reaches(waits.Op, approvals.Succeeded)
	r.wantNames("the second look and the request", "bot of agents,more")

	// What became of it is asked in the same name.
	r.cluster.refuse = func(action.Action) (error, bool) { return errors.New("the connection broke"), true }
	waits = r.callAs(bot, "scale_deployment", `{"namespace":"shop","name":"web","replicas":6}`)
	r.approve(waits.Op)
	r.reaches(waits.Op, approvals.Reconciled)
	r.wantNames("a look after it", "bot of agents,more")
}

func TestInWhoseNameAllowed(t *testing.T) {
	r := newRig(t, allowAll)
	if got := r.scale(5); got.Status != Succeeded {
		t.Fatalf("got %+v", got)
	}
	r.call("get_resource", `{"kind":"configmap","namespace":"shop","name":"settings"}`)
	r.wantNames("an allowed change and a read", "bot of agents")
}

// What the cluster's RBAC refuses to the caller is told as that, before people are
// asked and after.
func TestRefusedByRBAC(t *testing.T) {
	const words = `deployments.apps "web" is forbidden: User "idp:bot" cannot patch`
	forbidden := &APIError{Code: 403, Reason: "Forbidden", Message: words, User: "idp:bot"}
	check := func(what string, r Result, status Status) {
		t.Helper()
		if r.Status != status || !strings.Contains(r.Reason, `the cluster's RBAC refused it to you, who are its user "idp:bot": <data-`) || !strings.Contains(r.Reason, words) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	r := newRig(t, allowAll)
	r.cluster.refuse = func(action.Action) (error, bool) { return forbidden, false }
	check("an allowed change", r.scale(5), Failed)
	r = newRig(t, askAlways)
	r.cluster.unreachable = forbidden
	got := r.scale(5)
	check("a question", got, Failed)
	if !strings.Contains(got.NextStep, "which role is missing in the cluster") {
		t.Errorf("next step %q", got.NextStep)
	}
	r.cluster.unreachable = nil
	waits := r.scale(5)
	r.cluster.mu.Lock()
	r.cluster.unreachable = forbidden
	r.cluster.mu.Unlock()
	r.approve(waits.Op)
	op := r.reaches(waits.Op, approvals.Stale)
	check("what was approved", describe(op), "stale")
	r.wantSent()
}

// A caller whom the cluster cannot be shown is told so, and an approved operation
// of theirs is not tried again and again.
func TestCannotImpersonate(t *testing.T) {
	nobody := &ImpersonationError{"cluster local cannot be shown who you are: a group of yours is reserved"}
	r := newRig(t, askAlways)
	r.cluster.unreachable = nobody
	if got := r.scale(5); got.Status != Failed || got.Reason != nobody.Reason || !strings.Contains(got.NextStep, "Nothing was sent") {
		t.Errorf("got %+v", got)
	}
	r.cluster.unreachable = nil
	waits := r.scale(5)
	r.cluster.mu.Lock()
	r.cluster.unreachable = nobody
	r.cluster.mu.Unlock()
	r.approve(waits.Op)
	if op := r.reaches(waits.Op, approvals.Stale); op.Reason != nobody.Reason {
		t.Errorf("stale because %q", op.Reason)
	}
}
