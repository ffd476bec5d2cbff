package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	apicel "k8s.io/apiserver/pkg/cel"

	"countersign/action"
)

// A misspelt field is found at load, not when somebody's request is denied for it.
func TestMisspeltFields(t *testing.T) {
	for when, want := range map[string]string{
		`principal.groop == "a"`:                                       `at character 10: undefined field 'groop'`,
		`action.ressource == "pods"`:                                   `at character 7: undefined field 'ressource'`,
		`action.verb == 1`:                                             `at character 13: found no matching overload for '_==_' applied to '(string, int)'`,
		`diff.exists(d, d.pth == "/spec")`:                             `at character 17: undefined field 'pth'`,
		`pods.all(p, size(p.container) == 1)`:                          `at character 19: undefined field 'container'`,
		`oldPods.all(p, p.Path == "")`:                                 `at character 17: undefined field 'Path'`,
		`pss.exists(v, v.lvl == "baseline")`:                           `at character 16: undefined field 'lvl'`,
		`namespaceObject.metdata.name == "a"`:                          `at character 16: undefined field 'metdata'`,
		`namespaceObject.metadata.label["a"] == "b"`:                   `at character 25: undefined field 'label'`,
		`namespaceObject.status.fase == "Active"`:                      `at character 23: undefined field 'fase'`,
		`risks == "image changed"`:                                     `at character 7: found no matching overload for '_==_' applied to '(list(string), string)'`,
		`fields.exists(f, f.path == "")`:                               `at character 19: type 'string' does not support field selection`,
		`now > "2026-01-01"`:                                           `at character 5: found no matching overload for '_>_' applied to '(timestamp, string)'`,
		`request.userInfo == "a"`:                                      `at character 1: undeclared reference to 'request' (in container '')`,
		`authorizer.group("").resource("pods").check("get").allowed()`: `at character 1: undeclared reference to 'authorizer' (in container '')`,
	} {
		mistakeRow{when, header + "\n  - name: r\n    effect: allow\n    when: >- <1>\n      " + when, []string{"rule r: when: " + want}}.run(t, Known{})
	}
	mistakeRow{"in the third of several lines", header + "\n  - name: r\n    effect: allow\n    when: | <1>\n      tool == \"a\" ||\n\n      principal.groop == \"b\"\n",
		[]string{"rule r: when: at line 3, character 10: undefined field 'groop'"}}.run(t, Known{})
}

// holds says whether a condition is true of the request; what cannot be
// evaluated is an error.
func (w *world) holds(when, text string) bool {
	w.t.Helper()
	w.set = given(w.t, "  - name: r\n    effect: allow\n    when: >-\n      "+when).set
	d := w.decide(text)
	if d.Needs != 0 || d.Effect == Deny && len(d.Rules) > 0 {
		w.t.Errorf("when %s: %+v", when, d)
	}
	return d.Effect == Allow
}

const patchDeployment = "patch deployments.apps shop/web"

// seeingAll is a world in which no variable is null or empty.
func seeingAll(t *testing.T) *world {
	t.Helper()
	const live = `{"metadata":{"uid":"1"},"spec":{"template":{"spec":{"containers":[{"name":"c","image":"a"}]}}}}`
	const result = `{"metadata":{"uid":"1"},"spec":{"template":{"spec":{"hostPID":true,"containers":[{"name":"c","image":"b","envFrom":[{"secretRef":{"name":"s"}}]}]}}}}`
	return given(t, "  - {name: r, effect: allow}").seeing(live, result).with(func(r *Request) {
		r.Principal.OnBehalfOf = "alice"
		r.Args = map[string]any{"n": int64(1)}
		r.NamespaceRead = true
		r.Namespace = object(t, `{"metadata":{"name":"shop","uid":"2","labels":{"env":"prod"},"annotations":{"a":"b"},"creationTimestamp":"2026-01-01T00:00:00Z"},
			"spec":{"finalizers":["kubernetes"]},"status":{"phase":"Active"}}`)
	})
}

// Every declared field of every variable is there at run time: a rule that
// loads does not fail for want of a field.
func TestEveryDeclaredFieldIsThere(t *testing.T) {
	types, err := env()
	if err != nil {
		t.Fatal(err)
	}
	provider, ok := types.CELTypeProvider().(*apicel.DeclTypeProvider)
	if !ok {
		t.Fatalf("types are declared by a %T", types.CELTypeProvider())
	}
	fields := func(typeName string) []string {
		declared, ok := provider.FindDeclType("countersign." + typeName)
		if !ok || len(declared.Fields) == 0 {
			t.Fatalf("no type %s", typeName)
		}
		return slices.Collect(maps.Keys(declared.Fields))
	}
	w := seeingAll(t)
	for prefix, typeName := range map[string]string{
		"principal": "Principal", "action": "Action", "diff[0]": "Change", "pods[0]": "Pod", "oldPods[0]": "Pod", "pss[0]": "Violation",
		"namespaceObject": "Namespace", "namespaceObject.metadata": "NamespaceMetadata", "namespaceObject.spec": "NamespaceSpec", "namespaceObject.status": "NamespaceStatus",
	} {
		for _, field := range fields(typeName) {
			if when := fmt.Sprintf("dyn(%s.%s) != 1", prefix, field); !w.holds(when, patchDeployment) {
				t.Errorf("%s is false", when)
			}
		}
	}
	for _, name := range slices.Concat(others, fromPreview, fromNamespace) {
		if when := fmt.Sprintf("dyn(%s) != null", name); !w.holds(when, patchDeployment) {
			t.Errorf("%s is false", when)
		}
	}
}

func TestVariables(t *testing.T) {
	w := seeingAll(t)
	for _, when := range []string{
		`action.version == "v1" && action.kind == "" && !action.force && action.propagationPolicy == "" && action.gracePeriodSeconds == -1`,
		`principal.onBehalfOf == "alice" && principal.groups == ["agents", "team-shop"]`,
		`fields == [""]`, // nothing was sent
		`pods.map(p, p.path) == ["/spec/template/spec"] && pods[0].spec.hostPID && pods[0].containers[0].image == "b" && pods[0].secrets == ["s"]`,
		`oldPods[0].path == "/spec/template/spec" && oldPods[0].secrets == [] && !has(oldPods[0].spec.hostPID)`,
		`pss[0].level == "baseline" && pss[0].check == "host namespaces" && pss[0].detail == "hostPID=true" && pss[0].path == "/spec/template/spec"`,
		`pss.exists(v, v.level == "restricted" && v.check == "runAsNonRoot != true") && pss.filter(v, v.check == "host namespaces").size() == 1`,
		`risks == ["image changed", "privilege gained"]`,
		`diff.exists(d, d.op == "replace" && d.path == "/spec/template/spec/containers/0/image" && d.old == "a" && d.new == "b")`,
		`diff.exists(d, d.op == "add" && d.path == "/spec/template/spec/hostPID" && d.old == null && d.new)`,
		`namespaceObject.metadata.labels.env == "prod" && namespaceObject.metadata.labels["env"] == "prod" && !("x" in namespaceObject.metadata.annotations)`,
		`namespaceObject.metadata.name == action.namespace && namespaceObject.status.phase == "Active" && namespaceObject.spec.finalizers == ["kubernetes"]`,
		`args == {"n": 1} && now == timestamp("2026-03-14T12:00:00Z") && tool == "some_tool"`,
	} {
		if !w.holds(when, patchDeployment) {
			t.Errorf("%s is false", when)
		}
	}
	// What there is none of is null, or an empty list.
	w = given(t, "  - {name: r, effect: allow}").with(func(r *Request) { r.Principal, r.NamespaceRead = &action.Principal{}, true })
	for _, when := range []string{
		`object == null && oldObject == null && namespaceObject == null`,
		`diff == [] && pods == [] && oldPods == [] && pss == [] && risks == [] && fields == [] && args == {}`,
		`principal.groups == [] && principal.subject == "" && !has(args.n) && args.?n.orValue(7) == 7`,
		`!(namespaceObject != null && namespaceObject.metadata.name == "shop")`,
	} {
		if !w.holds(when, "get pods shop/web") {
			t.Errorf("%s is false", when)
		}
	}
	// A preview of a deletion shows no object, of a creation no oldObject.
	const some = `{"spec":{"containers":[{"name":"c"}]}}`
	if w := w.seeing(some, ""); !w.holds(`object == null && pods == [] && pss == [] && oldPods.size() == 1 && diff[0].op == "remove"`, "delete pods shop/web") {
		t.Error("deletion")
	}
	if w := w.seeing("", some); !w.holds(`oldObject == null && oldPods == [] && pods.size() == 1 && diff[0].op == "add"`, "apply pods shop/web") {
		t.Error("creation")
	}
	three := int64(3)
	w.req.Action = request(t, "delete pods shop/web")
	w.req.Action.Options = action.Options{Force: true, PropagationPolicy: "Orphan", GracePeriodSeconds: &three}
	w.set = given(t, `  - {name: r, effect: allow, when: 'action.force && action.propagationPolicy == "Orphan" && action.gracePeriodSeconds == 3'}`).set
	if d := w.set.Decide(w.req); d.Effect != Allow {
		t.Errorf("options: %+v", d)
	}
}

// The libraries of Kubernetes' CEL are there.
func TestLibraries(t *testing.T) {
	w := given(t, "  - {name: r, effect: allow}")
	for _, when := range []string{
		`quantity("1500m").add(1).isGreaterThan(quantity("2"))`,
		`[3, 1, 2].max() == 3 && [1, 2].sum() == 3 && [1, 2].isSorted() && [1, 1].indexOf(1) == 0`,
		`"registry/app:v1.2".find("v[0-9]+") == "v1" && "a1b2".findAll("[0-9]") == ["1", "2"]`,
		`ip("10.0.0.1").family() == 4 && cidr("10.0.0.0/8").containsIP("10.1.2.3")`,
		`semver("1.9.0").isLessThan(semver("1.10.0"))`,
		`!format.dns1123Label().validate("web").hasValue() && format.dns1123Label().validate("We b").hasValue()`,
		`url("https://example.com:80/a").getHostname() == "example.com"`,
		`sets.contains(["a", "b"], ["b"]) && sets.intersects([1], [1, 2])`,
		`"a,b".split(",") == ["a", "b"] && "%s-%d".format(["a", 1]) == "a-1"`,
		`{"a": 1}.all(k, v, k == "a" && v == 1)`,
	} {
		if !w.holds(when, "get pods shop/web") {
			t.Errorf("%s is false", when)
		}
	}
}

func numbers(n int) []any {
	list := make([]any, n)
	for i := range list {
		list[i] = int64(i)
	}
	return list
}

// A decision's conditions may cost so much together; the rule that has nothing
// left denies, and is named. How many rules there are does not matter.
func TestDecisionBudget(t *testing.T) {
	const dear = `!args.text.contains(args.text + "b")` // two thirds of what one expression may cost
	rules := func(n int, when string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "  - {name: r%d, effect: allow, match: {resources: [pods]}, when: '%s'}\n", i, when)
		}
		return b.String() + "  - {name: last, effect: allow, when: 'true'}\n"
	}
	ask := func(rules string) Decision {
		return given(t, rules).with(func(r *Request) { r.Args = map[string]any{"text": strings.Repeat("a", 8_000)} }).decide("get pods shop/web")
	}
	if d := ask(rules(2, dear)); d.Effect != Allow || len(d.Rules) != 3 {
		t.Errorf("two dear rules: %+v", d)
	}
	const reason = "rule last could not be evaluated: the conditions before it used up the cost limit of a decision"
	if d := ask(rules(6, dear)); d.Effect != Deny || !strings.HasSuffix(d.Reason, reason) || !slices.Contains(d.Rules, "last") || slices.Contains(d.Rules, "r0") {
		t.Errorf("six dear rules: %+v", d)
	}
	if d := ask(rules(1000, `size(args.text) == 8000 && action.name == "web"`)); d.Effect != Allow || len(d.Rules) != 1001 {
		t.Errorf("many cheap rules: %s, %d rules, %.200s", d.Effect, len(d.Rules), d.Reason)
	}
}

// Whatever a caller sends, a decision does not take long: a loop over a long
// list is stopped before its costs are too high, and the rule denies.
func TestDecisionTime(t *testing.T) {
	w := given(t, `
  - {name: all, effect: allow}
  - {name: slow, effect: deny, when: 'args.list.exists(x, x < 0)'}
  - {name: slow-too, effect: deny, when: 'args.list.exists(x, x < 0)'}
`).with(func(r *Request) { r.Args = map[string]any{"list": numbers(100_000)} })
	before := time.Now()
	d := w.decide("get pods shop/web")
	if took := time.Since(before); took > 10*decisionTime {
		t.Errorf("took %s", took)
	}
	if d.Effect != Deny || !strings.Contains(d.Reason, "rule slow could not be evaluated: its condition took too long") || !slices.Equal(d.Rules, []string{"slow", "slow-too"}) {
		t.Errorf("got %+v", d)
	}
}
