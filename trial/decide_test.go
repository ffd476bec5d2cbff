package trial_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/action"
	"countersign/kube"
	"countersign/policy"
	"countersign/trial"
)

// world is what decides, under rules as they stand below spec.
func world(t testing.TB, clusters []string, spec string) *trial.World {
	t.Helper()
	set, err := policy.Load(fstest.MapFS{"p.yaml": {Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n" + spec)}}, policy.Known{})
	if err != nil {
		t.Fatal(err)
	}
	return trial.New(set, clusters, kinds)
}

func kinds(extra ...action.Resource) trial.Kinds { return kube.Builtin(extra...) }

// cases reads cases as they stand below cases. Each has a principal "bot" of the
// group agents and the Deployment shop/web at hand.
func cases(t testing.TB, text string) []trial.Case {
	t.Helper()
	found, err := trial.Decode("x_test.yaml", []byte(header+text))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const header = `apiVersion: countersign/v1alpha1
kind: PolicyTest
resources: [{group: example.com, version: v1, kind: Widget, resource: widgets, namespaced: true}]
cases:
`

const web = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop, uid: u1}, spec: {replicas: 2,
    selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [
    {name: web, image: "registry.example/web:1.0", ports: [{containerPort: 80}]}, {name: side, image: "registry.example/side:1"}]}}}}`

// test runs cases that all pass.
func test(t *testing.T, w *trial.World, text string) {
	t.Helper()
	for _, c := range cases(t, text) {
		if a, problem := w.Test(context.Background(), c); problem != "" {
			t.Errorf("%s: %s (%+v)", c.Name, problem, a)
		}
	}
}

const shopRules = `
  rules:
  - {name: reads, effect: allow, match: {principals: {groups: [agents]}, verbs: [get, list], resources: ["*", "!secrets"]}}
  - {name: small-scale, effect: allow, match: {tools: [scale_deployment], namespaces: [shop]}, when: object.spec.replicas > 0 && object.spec.replicas <= 10}
  - name: large-scale
    effect: require_approval
    match: {tools: [scale_deployment], namespaces: [shop]}
    when: object.spec.replicas == 0 || object.spec.replicas > 10
    approval: {approvers: [operators]}
    message: An operator decides.
  - {name: team, effect: allow, match: {tools: [apply_manifest], namespaceSelector: {matchLabels: {team: shop}}}}
  - {name: deletions, effect: require_approval, match: {verbs: [delete]}, approval: {approvers: [operators]}}
  - {name: keep-prod, effect: deny, match: {verbs: [delete]}, when: "has(namespaceObject.metadata.labels.env) && namespaceObject.metadata.labels.env == 'prod'"}
  limits:
  - {name: scales, match: {tools: [scale_deployment]}, calls: 5, per: 1m}
`

// Each case goes the whole way of a call: the words that are refused, the tool
// that is nobody's, and what hangs on the Namespace or the preview.
func TestDecide(t *testing.T) {
	test(t, world(t, nil, shopRules), `
- {name: a read, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: deploy, namespace: shop, name: web}}, expect: {decision: allow, rules: [reads]}}
- {name: of another group, principal: {username: bot}, call: {tool: get_resource, args: {kind: deploy, namespace: shop, name: web}}, expect: {decision: deny, rules: [], reason: no policy rule allows}}
- {name: a kind of ours, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: widget, namespace: shop, name: one}}, expect: {decision: allow}}
- {name: no such kind, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: deploymens, namespace: shop, name: web}}, expect: {decision: error, reason: near it are deployments.apps}}
- {name: no such argument, principal: {username: bot}, call: {tool: get_resource, args: {kin: deploy}}, expect: {decision: error, reason: unknown argument}}
- {name: no such tool, principal: {username: bot}, call: {tool: get_everything}, expect: {decision: error, reason: there is no tool}}
- {name: a small scale, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 5}}, live: [`+web+`], expect: {decision: allow, rules: [small-scale]}}
- {name: a large scale, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 11}}, live: [`+web+`], expect: {decision: require_approval, rules: [large-scale], reason: An operator decides}}
- {name: to nothing, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 0}}, live: [`+web+`], expect: {decision: require_approval}}
- {name: of nothing, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: gone, replicas: 5}}, live: [`+web+`], expect: {decision: error, reason: give the object under live}}
- {name: elsewhere, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: other, name: web, replicas: 5}}, expect: {decision: deny, rules: []}}
- {name: without the object that only an approver would see, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, expect: {decision: require_approval, rules: [deletions]}}
- {name: labels that deny, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, namespaces: {shop: {env: prod}}, expect: {decision: deny, rules: [keep-prod]}}
- {name: labels of a live Namespace, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {env: prod}}}], expect: {decision: deny, rules: [keep-prod]}}
- {name: a Namespace that is not there, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, absent: [shop], expect: {decision: deny, rules: [keep-prod], reason: could not be evaluated}}
- {name: selected by label, principal: {username: bot}, manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}", namespaces: {shop: {team: shop}}, expect: {decision: allow, rules: [team]}}
- {name: not selected, principal: {username: bot}, manifest: "{apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: shop}}", expect: {decision: deny}}
- {name: another version, principal: {username: bot}, manifest: "{apiVersion: autoscaling/v1, kind: HorizontalPodAutoscaler, metadata: {name: c, namespace: shop}}", namespaces: {shop: {team: shop}}, expect: {decision: error, reason: write it as autoscaling/v2}}
- {name: a guard, principal: {username: bot}, manifest: "{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop}, spec: {hostPID: true, containers: [{name: c, image: c}]}}", namespaces: {shop: {team: shop}}, expect: {decision: deny, rules: ["guard:host-access"]}}
- {name: one's own operations, principal: {username: bot}, call: {tool: get_operation, args: {op: x}}, expect: {decision: allow, reason: policy is not asked}}
- {name: live without a name, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [{apiVersion: v1, kind: Pod}], expect: {decision: error, reason: "live, object 1: metadata.name"}}
- {name: live of an unknown kind, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [{apiVersion: v1, kind: Pot, metadata: {name: a}}], expect: {decision: error, reason: has no kind "v1 Pot"}}
- {name: the same twice, principal: {username: bot, groups: [agents]}, call: {tool: get_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [`+web+`, `+web+`], expect: {decision: error, reason: given twice}}
`)
}

func TestNow(t *testing.T) {
	test(t, world(t, nil, `
  rules:
  - {name: office-hours, effect: allow, match: {verbs: [list]}, when: "now.getDayOfWeek() in [1, 2, 3, 4, 5] && now.getHours() >= 8 && now.getHours() < 18"}
`), `
- {name: noon on a Monday unless it says, principal: {username: bot}, call: {tool: list_namespaces}, expect: {decision: allow}}
- {name: on a Sunday, principal: {username: bot}, call: {tool: list_namespaces}, now: 2026-01-04T12:00:00Z, expect: {decision: deny}}
- {name: in quotes, principal: {username: bot}, call: {tool: list_namespaces}, now: "2026-01-05T20:00:00+01:00", expect: {decision: deny}}
`)
}

// With several clusters every tool takes a cluster, and a case need not repeat it.
func TestClusters(t *testing.T) {
	const rules = `
  rules:
  - {name: staging, effect: allow, match: {clusters: [staging]}, when: "args.cluster == 'staging'"}
`
	test(t, world(t, []string{"prod", "staging"}, rules), `
- {name: in the case, principal: {username: bot}, cluster: staging, call: {tool: list_namespaces}, expect: {decision: allow}}
- {name: in the arguments, principal: {username: bot}, call: {tool: list_namespaces, args: {cluster: staging}}, expect: {decision: allow}}
- {name: the first, principal: {username: bot}, call: {tool: list_namespaces}, expect: {decision: deny}}
- {name: both, principal: {username: bot}, cluster: prod, call: {tool: list_namespaces, args: {cluster: staging}}, expect: {decision: error, reason: write it once}}
- {name: none of ours, principal: {username: bot}, cluster: test, call: {tool: list_namespaces}, expect: {decision: error, reason: the configuration has prod}}
`)
	const one = `
  rules:
  - {name: staging, effect: allow, match: {clusters: [staging]}}
`
	test(t, world(t, nil, one), `
- {name: any without a configuration, principal: {username: bot}, cluster: staging, call: {tool: list_namespaces}, expect: {decision: allow}}
- {name: not that one, principal: {username: bot}, cluster: prod, call: {tool: list_namespaces}, expect: {decision: deny}}
`)
}

// A rule in mode shadow refuses nothing, also where what it hangs on is not there.
func TestShadow(t *testing.T) {
	w := world(t, nil, `
  mode: shadow
  rules:
  - {name: watched, effect: deny, match: {verbs: [delete]}, when: oldObject.metadata.name == 'web'}
---
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: q}
spec:
  rules:
  - {name: all, effect: allow, match: {verbs: ["*"]}}
`)
	test(t, w, `
- {name: a, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, expect: {decision: allow}}
`)
	c := cases(t, `
- {name: a, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, live: [`+web+`], expect: {decision: allow}}
`)[0]
	if e := w.Explain(context.Background(), c.Call); e.Shadow == nil || e.Shadow.Decision != "deny" || e.Decision != "allow" {
		t.Errorf("got %+v", e)
	}
}

// What a case wants and does not get is said, each of it.
func TestCheck(t *testing.T) {
	a := trial.Answer{Decision: "deny", Rules: []string{"b", "a"}, Reason: "because"}
	for _, row := range []struct {
		want trial.Want
		says []string
	}{
		{trial.Want{Decision: "deny"}, nil},
		{trial.Want{Decision: "deny", Rules: []string{"a", "b"}, Reason: "caus"}, nil},
		{trial.Want{Decision: "allow"}, []string{"got deny (because), wanted allow"}},
		{trial.Want{Decision: "deny", Rules: []string{}}, []string{"got rules [b a], wanted []"}},
		{trial.Want{Decision: "allow", Rules: []string{"a"}, Reason: "why"}, []string{"wanted allow", "wanted [a]", `holds "why"`}},
	} {
		got := row.want.Check(a)
		if (got == "") != (row.says == nil) {
			t.Errorf("%+v: got %q", row.want, got)
		}
		for _, part := range row.says {
			if !strings.Contains(got, part) {
				t.Errorf("%+v: %q does not say %q", row.want, got, part)
			}
		}
	}
}

func TestExplain(t *testing.T) {
	w := world(t, nil, shopRules)
	explain := func(text string) trial.Explanation { return w.Explain(context.Background(), cases(t, text)[0].Call) }

	e := explain(`
- {name: a, principal: {username: bot}, call: {tool: scale_deployment, args: {namespace: shop, name: web, replicas: 0}}, live: [` + web + `], expect: {decision: require_approval}}
`)
	if e.Decision != "require_approval" || !slices.Equal(e.Risks, []string{"replicas to zero"}) || e.Unseen != "" ||
		len(e.Approvals) != 1 || e.Approvals[0].Rule != "large-scale" || e.Approvals[0].Expires != "15m0s" {
		t.Errorf("got %+v", e)
	}
	var limits []string
	for _, l := range e.Limits {
		limits = append(limits, l.Name)
	}
	if !slices.Equal(limits, []string{"scales", "guard:loop"}) {
		t.Errorf("limits: got %v", limits)
	}
	want := map[string]string{
		"reads":       `does not match "patch"`,
		"small-scale": "matches, and its condition is false",
		"large-scale": "matches, and its condition is true",
	}
	for _, rule := range e.Requests[0].Rules {
		if text := want[rule.Rule]; !strings.Contains(rule.Why, text) || rule.Applies != (rule.Rule == "large-scale") {
			t.Errorf("rule %s: %+v; want %q", rule.Rule, rule, text)
		}
	}

	// A decision that needed nothing is explained with all that can be had, and
	// with why something cannot.
	e = explain(`
- {name: a, principal: {username: bot}, call: {tool: delete_resource, args: {kind: deploy, namespace: shop, name: web}}, namespaces: {shop: {env: prod}}, expect: {decision: deny}}
`)
	if e.Decision != "deny" || !strings.Contains(e.Unseen, "give the object under live") || len(e.Requests) != 1 {
		t.Errorf("got %+v", e)
	}
	// Refused before it was planned, and explained all the same.
	w = world(t, nil, "  rules:\n  - {name: none, effect: deny, match: {tools: [list_namespaces]}}\n")
	e = explain("\n- {name: a, principal: {username: bot}, call: {tool: list_namespaces}, expect: {decision: deny}}\n")
	if e.Decision != "deny" || len(e.Requests) != 1 || !e.Requests[0].Rules[0].Applies {
		t.Errorf("got %+v", e)
	}
	e = explain("\n- {name: a, principal: {username: bot}, call: {tool: list_namespaces, args: {x: 1}}, expect: {decision: deny}}\n")
	if e.Decision != trial.Failed || e.Requests != nil {
		t.Errorf("got %+v", e)
	}
}
