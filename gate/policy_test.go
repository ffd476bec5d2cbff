package gate

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"countersign/audit"
	"countersign/policy"
)

// specs puts a policy of several documents into force, each given as its spec.
func (r *rig) specs(specs ...string) *rig {
	r.t.Helper()
	files := fstest.MapFS{}
	for i, spec := range specs {
		text := fmt.Sprintf("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p%d}\nspec:\n%s\n", i, spec)
		files[fmt.Sprintf("p%d.yaml", i)] = &fstest.MapFile{Data: []byte(text)}
	}
	set, err := policy.Load(files, policy.Known{Approvers: []string{"sre"}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.policy.Store(set)
	return r
}

// read lists the namespaces that were asked for, and counts the previews.
func (c *fakeCluster) read() (namespaces []string, previews int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.namespacesRead), c.looked
}

// Nothing is read from a cluster that the decision does not hang on, and what is
// cheap is read first.
func TestOnlyWhatIsNeeded(t *testing.T) {
	const selected = `  - {name: own, effect: allow, match: {namespaceSelector: {matchLabels: {name: %s}}}%s}`
	for _, row := range []struct {
		name, rules string
		status      Status
		namespaces  []string
		previews    int
	}{
		{"attributes alone", allowAll, Succeeded, nil, 0},
		{"the object", allowLooking, Succeeded, nil, 1},
		{"the namespace's labels", fmt.Sprintf(selected, "shop", ""), Succeeded, []string{"shop"}, 0},
		{"labels that do not fit spare the preview", fmt.Sprintf(selected, "prod", ", when: 'size(diff) > 0'"), Denied, []string{"shop"}, 0},
		{"labels that fit do not", fmt.Sprintf(selected, "shop", ", when: 'size(diff) > 0'"), Succeeded, []string{"shop"}, 1},
		{"the namespace in a condition", `  - {name: own, effect: allow, when: 'namespaceObject.metadata.labels.name == "shop"'}`, Succeeded, []string{"shop"}, 0},
		{"nothing that could allow it", "  - {name: r, effect: allow, match: {namespaces: [prod]}}\n  - {name: d, effect: deny, when: 'size(diff) > 3'}", Denied, nil, 0},
		{"an approver's question", askAlways, Pending, nil, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, row.rules)
			if got := r.scale(3); got.Status != row.status {
				t.Errorf("got %+v; want %s", got, row.status)
			}
			if namespaces, previews := r.cluster.read(); !slices.Equal(namespaces, row.namespaces) || previews != row.previews {
				t.Errorf("read namespaces %v and %d previews; want %v and %d", namespaces, previews, row.namespaces, row.previews)
			}
		})
	}
	t.Run("a read", func(t *testing.T) {
		r := newRig(t, fmt.Sprintf(selected, "shop", ""))
		r.cluster.set("configmaps/ shop/a", map[string]any{"data": map[string]any{}})
		if got := r.call("get_resource", `{"kind":"configmap","name":"a","namespace":"shop"}`); got.Status != Succeeded {
			t.Errorf("got %+v", got)
		}
		if got := r.call("get_resource", `{"kind":"configmap","name":"a","namespace":"absent"}`); got.Status != Denied {
			t.Errorf("a namespace that is not there: %+v", got)
		}
	})
	t.Run("each namespace once", func(t *testing.T) {
		r := newRig(t, fmt.Sprintf(selected, "shop", ""))
		r.call("apply_manifest", threeObjects)
		if namespaces, _ := r.cluster.read(); !slices.Equal(namespaces, []string{"shop"}) {
			t.Errorf("read %v", namespaces)
		}
	})
}

// A namespace that is given other labels while people are asked is one that
// policy is asked about again.
func TestNamespaceWhenItRuns(t *testing.T) {
	r := newRig(t, `  - {name: own, effect: require_approval, match: {namespaceSelector: {matchLabels: {name: shop}}}, approval: {approvers: [sre], expires: 1h}}`)
	op := r.scale(9).Op
	r.rules(`  - {name: own, effect: require_approval, match: {namespaceSelector: {matchLabels: {name: prod}}}, approval: {approvers: [sre], expires: 1h}}`)
	r.approve(op)
	r.reaches(op, "DENIED")
	r.wantSent()
}

// Rules in mode shadow are decided and recorded, and change nothing else.
func TestShadow(t *testing.T) {
	const allowed = "  rules:\n" + allowAll
	shadow := func(rule string) string { return "  mode: shadow\n  rules:\n  - " + rule }
	last := func(r *rig) *audit.Policy {
		for _, record := range slices.Backward(r.store.all()) {
			if record.Type == audit.PolicyDecided {
				return record.Policy
			}
		}
		return nil
	}
	r := newRig(t, allowAll).specs(allowed, shadow("{name: no, effect: deny, when: 'object.spec.replicas > 2', message: Too many.}"))
	if got := r.scale(3); got.Status != Succeeded {
		t.Fatalf("got %+v", got)
	}
	if p := last(r); p.Decision != "allow" || p.Shadow == nil || p.Shadow.Decision != "deny" || p.Shadow.Reason != "Too many." || !slices.Equal(p.Shadow.Rules, []string{"no"}) {
		t.Errorf("recorded %+v, %+v", p, p.Shadow)
	}
	if r.scale(1); last(r).Shadow != nil {
		t.Errorf("the same decision is recorded twice: %+v", last(r).Shadow)
	}

	// What only the shadow wants to see and cannot refuses nothing.
	r.cluster.unreachable = errors.New("gone")
	if got := r.scale(4); got.Status != Succeeded {
		t.Errorf("got %+v", got)
	}
	if p := last(r); p.Shadow == nil || !strings.Contains(p.Shadow.Reason, "could not be decided") {
		t.Errorf("recorded %+v", p.Shadow)
	}
}

const loopOff = "  guardsOff: [\"guard:loop\"]\n"

// Limits count what policy lets through, for each of those who share a budget.
func TestLimits(t *testing.T) {
	other := bot
	other.Subject = "other"
	type call struct {
		by       string // bot when empty
		replicas int
		want     Status
	}
	for _, row := range []struct {
		name, limit string
		calls       []call
	}{
		{"each principal has its own", "{name: few, calls: 2, per: 1m}", []call{{"", 3, Succeeded}, {"", 4, Succeeded}, {"", 5, Denied}, {"other", 5, Succeeded}, {"", 6, Denied}}},
		{"each tool has its own", "{name: few, calls: 1, per: 1m, by: tool}", []call{{"", 3, Succeeded}, {"other", 4, Denied}}},
		{"all share one", "{name: few, calls: 1, per: 1m, by: rule}", []call{{"", 3, Succeeded}, {"other", 4, Denied}}},
		{"identical calls", "{name: few, calls: 2, per: 1m, by: call}", []call{{"", 3, Succeeded}, {"", 3, Succeeded}, {"", 3, Denied}, {"", 4, Succeeded}, {"other", 3, Succeeded}}},
		{"of other requests", "{name: few, match: {verbs: [delete]}, calls: 1, per: 1m}", []call{{"", 3, Succeeded}, {"", 4, Succeeded}}},
		{"a refused call draws on nothing", "{name: few, calls: 1, per: 1m}", []call{{"", 9999, Denied}, {"", 3, Succeeded}, {"", 4, Denied}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t, allowAll).specs(loopOff + "  rules:\n" + allowAll + "\n  - {name: huge, effect: deny, when: 'args.replicas > 1000'}\n  limits:\n  - " + row.limit)
			for i, c := range row.calls {
				p := bot
				if c.by == "other" {
					p = other
				}
				got := r.callAs(p, "scale_deployment", fmt.Sprintf(`{"namespace":"shop","name":"web","replicas":%d}`, c.replicas))
				if got.Status != c.want {
					t.Errorf("call %d: %+v; want %s", i+1, got, c.want)
				}
			}
		})
	}
}

func TestLimitsRefillAndSay(t *testing.T) {
	r := newRig(t, allowAll).specs(loopOff + "  rules:\n" + allowAll + "\n  limits:\n  - {name: few, calls: 2, per: 1m, message: Take it slowly.}")
	r.scale(3)
	r.scale(4)
	got := r.scale(5)
	if got.Rule != "few" || got.Reason != "limit few: at most 2 requests at once, and as many again over 1m0s; there is room again in 30s. Take it slowly." {
		t.Errorf("got %+v", got)
	}
	r.wantSent(scaled, scaled)
	r.later(31 * time.Second)
	if got := r.scale(5); got.Status != Succeeded {
		t.Errorf("after the wait: %+v", got)
	}
	if got := r.scale(6); got.Status != Denied {
		t.Errorf("and one more: %+v", got)
	}

	// A call counts once for each of its requests, and one that is too large
	// for the budget has no chance. Nothing of it is taken.
	r.later(time.Hour)
	if got := r.call("apply_manifest", threeObjects); got.Status != Denied || !strings.Contains(got.Reason, "this call alone is 3") {
		t.Errorf("got %+v", got)
	}
	if got := r.scale(7); got.Status != Succeeded {
		t.Errorf("the refused call took from the budget: %+v", got)
	}

	// A limit that is changed begins anew; one that is not keeps its count.
	r.specs(loopOff + "  rules:\n" + allowAll + "\n  limits:\n  - {name: few, calls: 2, per: 1m}")
	r.scale(8)
	if got := r.scale(9); got.Status != Denied {
		t.Errorf("a reload gave a new budget: %+v", got)
	}
	r.specs(loopOff + "  rules:\n" + allowAll + "\n  limits:\n  - {name: few, calls: 3, per: 1m}")
	if got := r.scale(9); got.Status != Succeeded {
		t.Errorf("the new limit: %+v", got)
	}
}

// Of several limits none is drawn on when one of them refuses.
func TestLimitsTogether(t *testing.T) {
	r := newRig(t, allowAll).specs(loopOff + "  rules:\n" + allowAll + "\n  limits:\n  - {name: mine, calls: 2, per: 1h}\n  - {name: ours, calls: 1, per: 1m, by: rule}")
	r.scale(3)
	if got := r.scale(4); got.Rule != "ours" {
		t.Errorf("got %+v", got)
	}
	r.later(2 * time.Minute)
	if got := r.scale(4); got.Status != Succeeded {
		t.Errorf("got %+v", got)
	}
}

func TestShadowLimit(t *testing.T) {
	r := newRig(t, allowAll).specs(loopOff+"  rules:\n"+allowAll, "  mode: shadow\n  limits:\n  - {name: few, calls: 1, per: 1m}")
	r.scale(3)
	if got := r.scale(4); got.Status != Succeeded {
		t.Fatalf("got %+v", got)
	}
	found := slices.ContainsFunc(r.store.all(), func(r audit.Record) bool {
		return r.Policy != nil && r.Policy.Shadow != nil && slices.Equal(r.Policy.Shadow.Rules, []string{"few"}) && r.Policy.Shadow.Decision == "deny"
	})
	if !found {
		t.Error("what the shadow limit would have refused is not on record")
	}
}

// An agent in a loop is told so, also one that repeats what policy refuses.
func TestLoop(t *testing.T) {
	for name, call := range map[string]struct{ rules, tool, args string }{
		"allowed":          {allowAll, "scale_deployment", `{"namespace":"shop","name":"web","replicas":3,"reason":"try %d"}`},
		"refused":          {"  - {name: looks, effect: allow, match: {verbs: [get, patch]}, when: 'args.replicas < 3'}", "scale_deployment", `{"namespace":"shop","name":"web","replicas":3,"reason":"try %d"}`},
		"refused outright": {"  - {name: other, effect: allow, match: {principals: {groups: [admins]}}}", "scale_deployment", `{"namespace":"shop","name":"web","replicas":3,"reason":"try %d"}`},
		"no dry run":       {allowLooking, "delete_resource", `{"kind":"configmap","namespace":"shop","name":"gone","reason":"try %d"}`},
		"no such kind":     {allowAll, "get_resource", `{"kind":"nothing","namespace":"shop","name":"gone"}`},
		"no sense":         {allowAll, "scale_deployment", `{"replicas":`},
		"about operations": {allowAll, "get_operation", `{"op":"x"}`},
	} {
		r := newRig(t, call.rules)
		var got Result
		for i := range 21 {
			args := call.args
			if strings.Contains(args, "%d") {
				args = fmt.Sprintf(args, i)
			}
			got = r.call(call.tool, args)
		}
		if got.Status != Denied || got.Rule != "guard:loop" || !strings.Contains(got.Reason, "You are repeating yourself") {
			t.Errorf("%s: %+v", name, got)
		}
		if got := r.scale(4); got.Rule == "guard:loop" {
			t.Errorf("%s: another call: %+v", name, got)
		}
	}
}

// The budgets of identical calls do not grow without bound.
func TestBudgetsAreBounded(t *testing.T) {
	var b budgets
	limit := policy.Limit{Name: "l", Calls: 2, Per: time.Minute, By: policy.ByCall}
	mine := draw{limit: limit, owner: "me", key: "call", n: 1}
	b.take([]draw{mine}, noon, false)
	b.take([]draw{mine}, noon, false)
	for i := range 3 * maxBudgets {
		b.take([]draw{{limit, "other", fmt.Sprint(i), 1}}, noon.Add(time.Duration(i)*time.Millisecond), false)
	}
	if n := len(b.by["other"]); n > maxBudgets {
		t.Errorf("%d budgets are kept", n)
	}
	if failed, _ := b.take([]draw{mine}, noon.Add(time.Second), false); failed == nil {
		t.Error("one caller's calls gave another a new budget")
	}
	for i := range 2 * maxOwners {
		b.take([]draw{{limit, fmt.Sprint(i), "call", 1}}, noon.Add(time.Hour+time.Duration(i)*time.Minute), false)
	}
	if n := len(b.by); n > maxOwners {
		t.Errorf("budgets of %d owners are kept", n)
	}
}

// Every record says which policy was in force, and a change of policy is one.
// Budgets that are full again go long before there are too many.
func TestFullBudgetsGo(t *testing.T) {
	var b budgets
	limit := policy.Limit{Name: "loop", Calls: 20, Per: time.Minute, By: policy.ByCall}
	for i := range maxBudgets {
		b.take([]draw{{limit, "one", fmt.Sprint(i), 1}}, noon.Add(time.Duration(i)*time.Second), false)
	}
	if n := len(b.by["one"]); n > sweepEvery {
		t.Errorf("%d budgets are kept", n)
	}
}

func TestPolicyOnRecord(t *testing.T) {
	r := newRig(t, allowAll)
	r.scale(3)
	r.call("scale_deployment", `{`)
	r.LoginRefused(audit.Source{}, errors.New("no"))
	first := r.policy.Load().Digest()
	for _, record := range r.store.all() {
		if record.Policy == nil || record.Policy.Digest != first {
			t.Errorf("%s says %+v", record.Type, record.Policy)
		}
	}
	r.PolicyChanged("", errors.New("p.yaml:3: bad"))
	r.PolicyChanged("sha256:new", nil)
	all := r.store.all()
	kept, changed := all[len(all)-2], all[len(all)-1]
	if kept.Type != audit.ConfigChanged || kept.Outcome != audit.Failure || kept.Policy.Digest != first || kept.Error.Message != "p.yaml:3: bad" {
		t.Errorf("recorded %+v", kept)
	}
	if changed.Outcome != audit.Success || changed.Policy.Digest != "sha256:new" || changed.Policy.Reason != "takes the place of "+first {
		t.Errorf("recorded %+v", changed)
	}
}

// A set that is put into force while a call is on its way does not decide it:
// the digest on record is that of the set which did.
func TestOneSetDecidesACall(t *testing.T) {
	r := newRig(t, allowLooking)
	first := r.policy.Load().Digest()
	r.cluster.looking = func() { r.rules("  - {name: none, effect: deny}") }
	if got := r.scale(3); got.Status != Succeeded {
		t.Errorf("got %+v", got)
	}
	for _, record := range r.store.all() {
		if record.Type == audit.PolicyDecided && record.Policy.Digest != first {
			t.Errorf("%+v is not by the set that decided", record.Policy)
		}
	}
}

// Whoever may only read is shown every tool that reads, and none that changes a cluster.
func TestVisibleToAReader(t *testing.T) {
	set, err := policy.Load(os.DirFS("../configs/policy/read-only"), policy.Known{})
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, allowAll)
	r.policy.Store(set)
	visible := r.Visible(&bot)
	for _, tool := range r.Tools {
		shown := slices.Contains(visible, tool)
		if reads := tool.ReadOnly() || len(tool.Scopes) == 0; shown != reads {
			t.Errorf("%s: reads %v, shown %v", tool.Name, reads, shown)
		}
	}
}
