package gate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/tools"
)

// exec is a call that has to look at the pod before it knows its plan.
func (r *rig) exec() Result {
	return r.call("exec_in_pod", `{"namespace":"shop","pod":"web-1","command":["env"]}`)
}

func withPod(r *rig) *rig {
	r.cluster.set("pods/ shop/web-1", map[string]any{
		"metadata": map[string]any{"uid": "pod-1"}, "spec": map[string]any{"containers": []any{map[string]any{"name": "web"}}},
	})
	return r
}

// A read on the way to a plan is decided like any other, and is on record with
// its Audit-ID before anything is answered or changed.
func TestReadWhilePlanning(t *testing.T) {
	r := withPod(newRig(t, allowAll))
	if got := r.exec(); got.Status != Succeeded {
		t.Fatalf("got %+v", got)
	}
	want := "log.opened tool.intent policy.decided tool.planned policy.decided exec.started exec.outcome"
	if got := types(r.store.all()); got != want {
		t.Errorf("records %s; want %s", got, want)
	}
	records := r.store.all()
	read := records[2].Actions
	if len(read) != 1 || read[0].Verb != "get" || read[0].Name != "web-1" || read[0].AuditID == "" {
		t.Errorf("the read is recorded as %+v", read)
	}
	if intent, planned := records[1], records[3]; intent.Tool.Args["pod"] != "web-1" || planned.Payload == nil || planned.Approval.PlanDigest == "" || planned.Actions[0].Subresource != "exec" {
		t.Errorf("intent %+v, planned %+v", intent, planned)
	}
}

// Whoever may not read what a tool has to see is denied, and the cluster is not asked.
func TestReadWhilePlanningDenied(t *testing.T) {
	for _, row := range []struct{ name, rules, reason string }{
		{"not allowed", `  - {name: commands, effect: allow, match: {verbs: [create], resources: [pods], subresources: [exec]}}`, "no policy rule allows get pods shop/web-1"},
		{"denied", allowAll + "\n  - {name: no-pods, effect: deny, match: {verbs: [get], resources: [pods]}, message: Not pods.}", "Not pods."},
		{"asked about", allowAll + "\n  - {name: ask, effect: require_approval, match: {verbs: [get]}, approval: {approvers: [sre], expires: 1h}}", "get pods shop/web-1 needs an approval, which exec_in_pod cannot ask for on its way"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := withPod(newRig(t, row.rules))
			got := r.exec()
			if got.Status != Denied || !strings.Contains(got.Reason, row.reason) {
				t.Errorf("got %+v", got)
			}
			if n := r.cluster.asked(); n != 0 {
				t.Errorf("the cluster was asked %d times", n)
			}
			if got := types(r.store.all()); got != "log.opened tool.intent policy.decided" {
				t.Errorf("records %s", got)
			}
		})
	}
}

// A read on the way draws on the limits, as if it had been a call of its own.
func TestReadWhilePlanningIsCounted(t *testing.T) {
	r := newRig(t, allowAll)
	r.specs("  rules:\n" + allowAll + "\n  limits:\n  - {name: gets, match: {verbs: [get]}, calls: 2, per: 1h}")
	withPod(r)
	for i, want := range []Status{Succeeded, Succeeded, Denied} {
		if got := r.exec(); got.Status != want {
			t.Errorf("call %d: %+v; want %s", i+1, got, want)
		}
	}
}

// What cannot be planned after all has an outcome, and nothing was changed.
func TestReadWhilePlanningFails(t *testing.T) {
	r := newRig(t, allowAll)
	if got := r.exec(); got.Status != Failed || unmarked(got.Reason) != "the API server refused it: web-1 not found" {
		t.Errorf("no pod: %+v", got)
	}
	records := r.store.all()
	last := records[len(records)-1]
	if last.Type != audit.ExecOutcome || last.Outcome != audit.Failure || len(last.Actions) != 1 || last.Actions[0].Code != 404 {
		t.Errorf("the outcome is %+v", last)
	}
	r.cluster.set("pods/ shop/web-1", map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": "a"}, map[string]any{"name": "b"}}}})
	if got := r.exec(); got.Status != Failed || !strings.Contains(got.Reason, "one of a, b") {
		t.Errorf("two containers: %+v", got)
	}
	r.wantSent()
}

// When the log cannot take the record of a read, no answer is given out.
func TestReadWhilePlanningUnrecorded(t *testing.T) {
	for _, kind := range []fault{lost, kept} {
		r := withPod(newRig(t, allowAll))
		r.store.fault = func(b Batch) fault {
			if slices.ContainsFunc(b.Entries, func(e Entry) bool { return e.Record.Type == audit.PolicyDecided }) {
				return kind
			}
			return none
		}
		if got := r.exec(); got.Status != Failed || got.Reason != "the audit log cannot take a record, so nothing is done" || got.Data != "" {
			t.Errorf("%v: %+v", kind, got)
		}
		r.wantSent()
	}
}

// A command that people approve meets the pod that they were shown, and is
// asked about again when another has its name.
func TestApprovedCommand(t *testing.T) {
	const rules = `  - {name: read, effect: allow, match: {verbs: [get]}}
  - {name: ask, effect: require_approval, match: {verbs: [create]}, approval: {approvers: [sre], expires: 1h}}`
	r := withPod(newRig(t, rules))
	first := r.exec()
	if first.Status != Pending {
		t.Fatalf("got %+v", first)
	}
	if again := r.exec(); again.Op != first.Op {
		t.Errorf("the same call is asked as %s beside %s", again.Op, first.Op)
	}
	r.cluster.set("pods/ shop/web-1", map[string]any{"metadata": map[string]any{"uid": "pod-2"}, "spec": map[string]any{"containers": []any{map[string]any{"name": "web"}}}})
	r.approve(first.Op)
	stale := r.reaches(first.Op, approvals.Stale)
	r.wantSent()
	r.approve(stale.SupersededBy)
	done := r.reaches(stale.SupersededBy, approvals.Succeeded)
	if got := r.call("get_operation", `{"op":"`+done.ID+`"}`); got.Data == "" || !strings.Contains(got.Summary, "pods/exec shop/web-1") {
		t.Errorf("the answer is %+v", got)
	}
}

// What a command did is not known when there was no answer, and nothing can tell.
func TestLostCommand(t *testing.T) {
	r := withPod(newRig(t, allowAll))
	r.cluster.refuse = func(a action.Action) (error, bool) {
		if a.Subresource == action.Exec {
			return fmt.Errorf("connection reset"), true
		}
		return nil, true
	}
	got := r.exec()
	if got.Status != Unknown {
		t.Fatalf("got %+v", got)
	}
	if op := r.reaches(got.Op, approvals.Reconciled); op.Evidence != Undeterminable {
		t.Errorf("found %s: %s", op.Evidence, op.Reason)
	}
}

// A disruption budget that holds one of several evictions up is waited for, with an Audit-ID
// on record for each try, and not for ever.
func TestHeldUpEviction(t *testing.T) {
	evict := action.Action{
		Cluster: "local", Verb: action.Create, Resource: action.Resource{Version: "v1", Resource: "pods", Kind: "Pod", Namespaced: true},
		Subresource: action.Eviction, Namespace: "shop", Name: "web-1", Body: map[string]any{},
	}
	other := evict
	other.Name = "web-2"
	for _, row := range []struct {
		name    string
		refused int
		after   time.Duration
		want    approvals.State
		tries   int
	}{
		{"once", 1, 0, approvals.Succeeded, 2},
		{"too long", 9, 2 * time.Minute, approvals.Failed, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, allowAll)
			tries := 0
			r.cluster.refuse = func(a action.Action) (error, bool) {
				if a.Name != evict.Name {
					return nil, true
				}
				if tries++; tries > row.refused {
					return nil, true
				}
				later := r.clock.Load().Add(row.after)
				r.clock.Store(&later)
				return &APIError{Code: 429, Reason: "TooManyRequests", Message: "a budget"}, false
			}
			op := approvals.Operation{ID: "op", State: approvals.Executing, Revision: 1, Tool: "drain_node", Plan: action.Plan{Actions: []action.Action{evict, other}}}
			ids := []string{"op.1", "op.2"}
			if err := r.commit(Batch{Entries: []Entry{r.startedEntry(op, ids, nil)}, Operations: []approvals.Operation{op}}); err != nil {
				t.Fatal(err)
			}
			r.finish(context.Background(), &op.Principal, op, ids, nil, nil)
			if got, _ := r.store.Operation("op"); got.State != row.want || tries != row.tries || r.store.count(audit.ExecStarted) != row.tries {
				t.Errorf("%s after %d tries, %d on record", got.State, tries, r.store.count(audit.ExecStarted))
			}
		})
	}
}

// A caller sees its own latest operations, and how many were looked at.
func TestListOperations(t *testing.T) {
	r := newRig(t, allowAll)
	if got := r.call("list_operations", `{}`); got.Data != "You have no such operations." {
		t.Errorf("got %+v", got)
	}
	for i := range maxListed + 1 {
		r.scale(i + 1)
	}
	got := r.call("list_operations", `{}`)
	if n := strings.Count(got.Data, "succeeded  scale_deployment  patch deployments.apps/scale shop/web"); n != maxListed || !strings.Contains(got.Data, "The latest 50 are shown") {
		t.Errorf("%d are listed: %s", n, got.Data)
	}
}

var _ tools.Reader = &planner{}

// An approver is told when masking took what could be code from a command line.
func TestHiddenCode(t *testing.T) {
	manifest := func(args string) string {
		return fmt.Sprintf(`{"manifest":"{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}, spec: {containers: [{name: a, image: a, args: %s}]}}"}`, args)
	}
	for _, row := range []struct {
		args  string
		hides bool
	}{
		{`[run, --password=hunter2]`, false},
		{`[sh, -c, 'run; more']`, false},
		{`[psql, --password, 'x; rm -rf /']`, true},
	} {
		r := newRig(t, askAlways)
		got := r.call("apply_manifest", manifest(row.args))
		op, err := r.store.Operation(got.Op)
		if err != nil {
			t.Fatal(err, got)
		}
		if slices.ContainsFunc(op.Risks, func(risk string) bool { return strings.Contains(risk, "could be code") }) != row.hides {
			t.Errorf("%s: risks %v", row.args, op.Risks)
		}
	}
}

// Only so many allowed changes run at once, and one more is told to come back.
func TestManyChanges(t *testing.T) {
	r := newRig(t, allowAll)
	for range maxChanges {
		r.changes <- struct{}{}
	}
	if got := r.scale(3); got.Status != Failed || !strings.Contains(got.NextStep, "again in a moment") {
		t.Errorf("got %+v", got)
	}
	r.wantSent()
	if got := types(r.store.all()); got != "log.opened tool.intent exec.outcome" {
		t.Errorf("records %s", got)
	}
	<-r.changes
	if got := r.scale(3); got.Status != Succeeded {
		t.Errorf("with room again: %+v", got)
	}
	if len(r.changes) != maxChanges-1 {
		t.Errorf("%d places are taken", len(r.changes))
	}
}
