package policy

import (
	"slices"
	"testing"

	"countersign/action"
)

// For each field by which a rule is not about a request, what is said of it.
func TestExplain(t *testing.T) {
	const allow, deny = "effect: allow", "effect: deny"
	w := given(t, "  - {name: all, effect: allow}").with(func(r *Request) { r.Principal.Groups = []string{"agents", "team-shop"} }).
		in(`{"metadata":{"labels":{"env":"prod"}}}`).seeing("", `{"spec":{"replicas":5}}`)
	for _, row := range []struct {
		rule, request string
		applies       bool
		why           string
	}{
		{allow + ", match: {tools: [a*, b]}", "patch pods shop/web", false, `tools [a*, b] does not match "some_tool"`},
		{allow + ", match: {principals: {subjects: [x]}}", "patch pods shop/web", false, `principals.subjects [x] does not match "bot-1"`},
		{allow + `, match: {principals: {groups: ["*", "!agents"]}}`, "patch pods shop/web", false, `principals.groups [*, !agents] does not match "agents, team-shop"`},
		{allow + ", match: {principals: {issuers: [x]}}", "patch pods shop/web", false, `principals.issuers [x] does not match "https://idp"`},
		{allow + ", match: {principals: {clients: [x]}}", "patch pods shop/web", false, `principals.clients [x] does not match "devin"`},
		{allow + ", match: {clusters: [x]}", "patch pods shop/web", false, `clusters [x] does not match "local"`},
		{allow + ", match: {verbs: [get, list]}", "patch pods shop/web", false, `verbs [get, list] does not match "patch"`},
		{allow + ", match: {verbs: [create]}", "apply pods shop/web", false, `verbs [create] do not cover all of create and patch, which the request is`},
		{deny + ", match: {verbs: [create]}", "apply pods shop/web", true, `matches`},
		{allow + ", match: {resources: [services]}", "patch deployments.apps shop/web", false, `resources [services] does not match "deployments.apps"`},
		{allow + ", match: {subresources: [scale]}", "patch pods shop/web", false, `subresources [scale] does not match ""`},
		{allow + ", match: {namespaces: [prod-*]}", "patch pods shop/web", false, `namespaces [prod-*] does not match "shop"`},
		{allow + ", match: {namespaces: [shop]}", "list pods", false, `namespaces [shop] does not cover all of them, which the request is about`},
		{deny + ", match: {namespaces: [shop]}", "list pods", true, `matches`},
		{allow + `, match: {namespaces: ["*"]}`, "get nodes n1", false, `namespaces [*]: the object lies in none`},
		{deny + ", match: {namespaces: [shop]}", "get nodes n1", false, `namespaces [shop] does not match ""`},
		{allow + ", match: {names: [db]}", "patch pods shop/web", false, `names [db] does not match "web"`},
		{allow + ", match: {names: [db]}", "list pods shop/", false, `names [db] does not cover all of them, which the request is about`},
		{deny + ", match: {names: [db]}", "list pods shop/", true, `matches`},
		{allow + ", match: {namespaceSelector: {matchLabels: {env: dev}}}", "patch pods shop/web", false, `namespaceSelector env=dev does not select namespace "shop"`},
		{allow + ", match: {namespaceSelector: {matchLabels: {env: prod}}}", "patch pods shop/web", true, `matches`},
		{allow + ", match: {namespaceSelector: {matchLabels: {env: prod}}}", "get nodes n1", false, `namespaceSelector: the object lies in no namespace`},
		{allow + ", match: {namespaceSelector: {matchLabels: {env: prod}}}", "list pods", false, `namespaceSelector env=prod does not cover all of them, which the request is about`},
		{allow + ", when: object.spec.replicas == 5", "patch pods shop/web", true, `matches, and its condition is true`},
		{allow + ", when: object.spec.replicas == 6", "patch pods shop/web", false, `matches, and its condition is false`},
		{allow + ", match: {namespaceSelector: {matchLabels: {env: prod}}}, when: object.spec.replicas == 6", "patch pods shop/web", false, `matches, and its condition is false`},
		{allow + ", when: args.x == 1", "patch pods shop/web", true, `denies, because its condition could not be evaluated: no such key: x`},
	} {
		w.set = given(t, "  - {name: other, effect: require_approval, approval: {approvers: [sre]}, match: {verbs: [watch]}}\n  - {name: r, "+row.rule+"}").set
		req := w.req
		req.Action = request(t, row.request)
		got := w.set.Explain(req)
		want := Explanation{Rule: "r", Effect: Effect(map[bool]string{true: "allow", false: "deny"}[row.rule[len("effect: ")] == 'a']), Applies: row.applies, Why: row.why}
		if len(got) != 2 || got[0].Rule != "other" || got[0].Applies {
			t.Fatalf("%s: %+v", row.rule, got)
		}
		got[1].Variables = nil
		if asJSON(t, got[1]) != asJSON(t, want) {
			t.Errorf("%s, %s:\n%+v; want\n%+v", row.rule, row.request, got[1], want)
		}
	}

	// What cannot be told yet, and of which rules and variables.
	set := twoFiles(t, "  - {name: both, effect: allow, when: namespaceObject != null && object.spec.replicas == action.gracePeriodSeconds}\n  - {name: chosen, effect: allow, match: {namespaceSelector: {matchLabels: {a: b}}}, when: object != null}\n",
		"shadow", "  - {name: s, effect: deny, when: now < timestamp('2030-01-01T00:00:00Z')}\n  - {name: t, effect: deny, match: {verbs: [get]}, when: tool == ''}\n")
	got := set.Explain(Request{Principal: &action.Principal{}, Action: request(t, "patch pods shop/web"), Now: noon})
	want := []Explanation{
		{Rule: "both", Effect: Allow, Unknown: true, Why: "cannot be told without the Namespace and a preview of the object", Variables: []string{"action", "namespaceObject", "object"}},
		{Rule: "chosen", Effect: Allow, Unknown: true, Why: "cannot be told without the Namespace", Variables: []string{"object"}},
		{Rule: "s", Effect: Deny, Applies: true, Shadow: true, Why: "matches, and its condition is true", Variables: []string{"now"}},
		{Rule: "t", Effect: Deny, Shadow: true, Why: `verbs [get] does not match "patch"`},
	}
	if asJSON(t, got) != asJSON(t, want) {
		t.Errorf("got\n%s; want\n%s", asJSON(t, got), asJSON(t, want))
	}

	// The guards are among them, and say that they are.
	got = guarded(t).set.Explain(Request{Principal: &action.Principal{}, Action: request(t, "get pods/proxy shop/web"), Now: noon})
	if i := slices.IndexFunc(got, func(e Explanation) bool { return e.Rule == "guard:proxy" }); i < 0 || !got[i].Guard || !got[i].Applies || got[0].Guard {
		t.Errorf("got %+v", got)
	}
}
