package policy

import (
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"countersign/action"
)

func TestLimits(t *testing.T) {
	w := given(t, `
  - {name: all, effect: allow}
  limits:
  - {name: every, calls: 100, per: 1h}
  - {name: deletes, match: {verbs: [delete]}, calls: 10, per: 10m, by: rule, message: Slowly.}
  - {name: creations, match: {verbs: [create]}, calls: 5, per: 1m, by: tool}
  - {name: prod, match: {namespaces: [prod], resources: [pods]}, calls: 5, per: 1m, by: tool}
  - {name: others, match: {principals: {groups: [admins]}}, calls: 5, per: 1m}
  - {name: that-tool, match: {tools: [that_tool], clusters: [local], subresources: [""], names: [web]}, calls: 5, per: 1m}
`)
	names := func(req Request, text string) string {
		var out []string
		for _, limit := range w.set.Limits(req.Principal, req.Tool, request(t, text)) {
			out = append(out, limit.Name)
		}
		return strings.Join(out, " ")
	}
	for text, want := range map[string]string{
		"get pods shop/web":      "every",
		"delete pods shop/web":   "every deletes",
		"create pods shop/web":   "every creations",
		"apply pods shop/web":    "every creations", // which may create
		"patch pods prod/web":    "every prod",
		"list pods":              "every prod", // of prod among others
		"list pods shop/":        "every",
		"patch services prod/a":  "every",
		"delete pods prod/web":   "every deletes prod",
		"delete namespaces prod": "every deletes",
	} {
		if got := names(w.req, text); got != want {
			t.Errorf("%s: %q; want %q", text, got, want)
		}
	}
	that := w.with(func(r *Request) { r.Tool = "that_tool"; r.Principal.Groups = []string{"admins"} }).req
	for text, want := range map[string]string{
		"get pods shop/web": "every others that-tool", "list pods": "every prod others that-tool",
		"get pods shop/db": "every others", "get pods/log shop/web": "every others", "get pods shop/web@other": "every others",
	} {
		if got := names(that, text); got != want {
			t.Errorf("by that tool, %s: %q; want %q", text, got, want)
		}
	}
	want := []Limit{
		{Name: "every", Calls: 100, Per: time.Hour, By: ByPrincipal},
		{Name: "deletes", Calls: 10, Per: 10 * time.Minute, By: ByRule, Message: "Slowly."},
	}
	if got := w.set.Limits(w.req.Principal, w.req.Tool, request(t, "delete pods shop/web")); asJSON(t, got) != asJSON(t, want) {
		t.Errorf("got %s; want %s", asJSON(t, got), asJSON(t, want))
	}
	w.allow("delete pods prod/web") // limits decide nothing
}

func TestLimitsInModeShadow(t *testing.T) {
	files := file1("  - {name: all, effect: allow}\n  limits: [{name: l, calls: 1, per: 1s}]")
	files["q.yaml"] = &fstest.MapFile{Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: q}\nspec:\n  mode: shadow\n  limits: [{name: s, calls: 1, per: 1s}]\n")}
	set, err := load(files)
	if err != nil {
		t.Fatal(err)
	}
	want := []Limit{{Name: "l", Calls: 1, Per: time.Second, By: ByPrincipal}, {Name: "s", Calls: 1, Per: time.Second, By: ByPrincipal, Shadow: true}}
	if got := set.Limits(&action.Principal{}, "t", request(t, "get pods shop/web")); asJSON(t, got) != asJSON(t, want) {
		t.Errorf("got %s; want %s", asJSON(t, got), asJSON(t, want))
	}
}

// The built-in limit is about everything, and is switched off like a guard.
func TestGuardLoop(t *testing.T) {
	limits := guarded(t).set.CallLimits(&action.Principal{}, "t")
	if len(limits) != 1 || limits[0].Name != "guard:loop" || limits[0].By != ByCall || limits[0].Shadow || limits[0].Calls < 5 || limits[0].Message == "" {
		t.Errorf("%+v", limits)
	}
	if limits := guarded(t, "guard:proxy").set.CallLimits(&action.Principal{}, "t"); len(limits) != 1 {
		t.Errorf("without another guard: %+v", limits)
	}
	if limits := guarded(t, "guard:loop").set.CallLimits(&action.Principal{}, "t"); len(limits) != 0 {
		t.Errorf("switched off: %+v", limits)
	}
	if d := guarded(t, "guard:loop").try(try{request: "get pods/proxy shop/web"}); d.Effect != Deny {
		t.Errorf("without it: %+v", d)
	}
}

func TestLimitMistakes(t *testing.T) {
	const limits = header + "  - {name: r, effect: allow}\n  limits:\n"
	for _, row := range []mistakeRow{
		{"nothing said", limits + "  - name: l <1>", []string{
			"limit l: calls is missing or less than 1: how many are let through", `limit l: per is missing or not more than 0: a duration such as "10m"`,
		}},
		{"too little", limits + "  - name: l\n    calls: 0 <1>\n    per: 0s <2>", []string{
			"limit l: calls is missing or less than 1: how many are let through", `limit l: per is missing or not more than 0: a duration such as "10m"`,
		}},
		{"of the wrong type", limits + "  - name: l\n    calls: many <1> <3>\n    per: 10 <2> <4>", []string{
			`"many" where a whole number is expected`, `"10" where a duration such as "45s" is expected`,
			"limit l: calls is missing or less than 1: how many are let through", `limit l: per is missing or not more than 0: a duration such as "10m"`,
		}},
		{"of calls, by what they would do", limits + "  - name: l\n    calls: 1\n    per: 1s\n    by: call\n    match: {verbs: [get]} <1>", []string{"limit l: a limit by call takes principals and tools only: it is counted before it is known what the call would do"}},
		{"by whom", limits + "  - name: l\n    calls: 1\n    per: 1s\n    by: group <1>", []string{`limit l: by is "group"; one of principal, tool, rule, call`}},
		{"by namespace", limits + "  - name: l\n    calls: 1\n    per: 1s\n    match:\n      namespaceSelector: {matchLabels: {a: b}} <1>",
			[]string{"limit l: a limit cannot have a namespaceSelector: it is counted by what the request itself says"}},
		{"unknown verb", limits + "  - name: l\n    calls: 1\n    per: 1s\n    match: {verbs: [smash]} <1>",
			[]string{`limit l: unknown verb "smash"; one of get, list, watch, create, update, patch, delete, deletecollection`}},
		{"a condition", limits + "  - name: l\n    calls: 1\n    per: 1s\n    when: 'true' <1>", []string{`unknown key "when"`}},
		{"no name", limits + "  - {calls: 1, per: 1s} <1>", []string{"limit 1 has no name"}},
		{"the name of a rule", limits + "  - {name: r, calls: 1, per: 1s} <1>", []string{"limit r: name is used already, at p.yaml:6"}},
	} {
		row.run(t, Known{})
	}
}
