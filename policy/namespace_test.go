package policy

import (
	"strings"
	"testing"
)

// in gives the request's Namespace, as JSON; empty is one that is not there.
func (w *world) in(namespace string) *world {
	w.t.Helper()
	return w.with(func(r *Request) { r.Namespace, r.NamespaceRead = object(w.t, namespace), true })
}

// An allow rule with a namespaceSelector is about what lies in a namespace that
// it selects; a rule that restricts also about what may lie in one.
func TestNamespaceSelector(t *testing.T) {
	const dev, prod, bare = `{"metadata":{"labels":{"env":"dev","team":"shop"}}}`, `{"metadata":{"labels":{"env":"prod"}}}`, `{"metadata":{"name":"shop"}}`
	const isDev = `{matchLabels: {env: dev}}`
	for _, row := range []struct {
		name, selector, namespace, request string
		allows, restricts                  bool
	}{
		{"label", isDev, dev, "get pods shop/web", true, true},
		{"another value", isDev, prod, "get pods shop/web", false, false},
		{"no labels", isDev, bare, "get pods shop/web", false, false},
		{"both labels", `{matchLabels: {env: dev, team: shop}}`, dev, "get pods shop/web", true, true},
		{"one of two", `{matchLabels: {env: dev, team: pay}}`, dev, "get pods shop/web", false, false},
		{"in", `{matchExpressions: [{key: env, operator: In, values: [dev, test]}]}`, dev, "get pods shop/web", true, true},
		{"not in any of them", `{matchExpressions: [{key: env, operator: In, values: [dev, test]}]}`, prod, "get pods shop/web", false, false},
		{"not in", `{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}`, dev, "get pods shop/web", true, true},
		{"not in, and it is", `{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}`, prod, "get pods shop/web", false, false},
		{"not in, of what is not labelled", `{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}`, bare, "get pods shop/web", true, true},
		{"exists", `{matchExpressions: [{key: team, operator: Exists}]}`, dev, "get pods shop/web", true, true},
		{"exists not", `{matchExpressions: [{key: team, operator: DoesNotExist}]}`, dev, "get pods shop/web", false, false},
		{"label and expression", `{matchLabels: {env: dev}, matchExpressions: [{key: team, operator: DoesNotExist}]}`, dev, "get pods shop/web", false, false},
		{"the Namespace itself", isDev, dev, "delete namespaces shop", true, true},
		{"the Namespace itself, another", isDev, prod, "delete namespaces shop", false, false},
		{"a Namespace that is made", isDev, "", "create namespaces shop", false, true},
		{"a Namespace whose name is made up", isDev, "", "create namespaces", false, true},
		{"a namespace that is not there", isDev, "", "get pods shop/web", false, true},
		{"over all namespaces", isDev, "", "list pods", false, true},
		{"all Namespaces", isDev, "", "list namespaces", false, true},
		{"outside of namespaces", isDev, "", "get nodes n1", false, false},
		{"outside of namespaces, and not labelled", `{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}`, "", "get nodes n1", false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			const allow = "  - {name: r, effect: allow, match: {namespaceSelector: "
			const deny = "  - {name: all, effect: allow}\n  - {name: r, effect: deny, match: {namespaceSelector: "
			if d := given(t, allow+row.selector+"}}").in(row.namespace).decide(row.request); d.Needs != 0 || (d.Effect == Allow) != row.allows {
				t.Errorf("allow rule: %+v; want it to match: %v", d, row.allows)
			}
			if d := given(t, deny+row.selector+"}}").in(row.namespace).decide(row.request); d.Needs != 0 || (d.Effect == Deny) != row.restricts {
				t.Errorf("deny rule: %+v; want it to match: %v", d, row.restricts)
			}
		})
	}
}

func TestNamespaceSelectorMistakes(t *testing.T) {
	for _, row := range []mistakeRow{
		{"unknown operator", header + `
  - name: r
    effect: allow
    match:
      namespaceSelector: {matchExpressions: [{key: env, operator: Is, values: [dev]}]} <1>`, []string{`rule r: namespaceSelector: "Is" is not a valid label selector operator`}},
		{"unknown key", header + `
  - name: r
    effect: allow
    match:
      namespaceSelector: {labels: {env: dev}} <1>`, []string{`unknown key "labels"`}},
		{"no values", header + `
  - name: r
    effect: allow
    match:
      namespaceSelector: {matchExpressions: [{key: env, operator: In}]} <1>`, []string{`rule r: namespaceSelector: values: Invalid value: null: for 'in', 'notin' operators, values set can't be empty`}},
	} {
		row.run(t, Known{})
	}
}

func TestNamespaceOf(t *testing.T) {
	for text, want := range map[string]string{
		"get pods shop/web": "shop", "list pods shop/": "shop", "list pods": "", "get namespaces shop": "shop", "list namespaces": "", "get nodes shop": "",
		"patch namespaces/finalize shop": "shop", "get namespaces.example.com shop/web": "shop",
	} {
		if got := NamespaceOf(request(t, text)); got != want {
			t.Errorf("%s: %q; want %q", text, got, want)
		}
	}
}

// namespaceObject is the Namespace, or null; a rule that forgets the second
// denies.
func TestNamespaceObject(t *testing.T) {
	w := given(t, "  - name: r\n    effect: allow\n    when: namespaceObject.metadata.labels.env == 'dev'")
	w.in(`{"metadata":{"labels":{"env":"dev"}}}`).allow("get pods shop/web", "get namespaces shop")
	w.in(`{"metadata":{"labels":{"env":"prod"}}}`).deny("get pods shop/web")
	for _, text := range []string{"get pods shop/web", "list pods", "get nodes n1"} {
		if d := w.in("").decide(text); d.Effect != Deny || !strings.HasPrefix(d.Reason, "rule r could not be evaluated: no such key") {
			t.Errorf("%s: %+v", text, d)
		}
	}
	w = given(t, "  - name: r\n    effect: allow\n    when: namespaceObject == null || 'env' in namespaceObject.metadata.?labels.orValue({})")
	w.in("").allow("get pods shop/web", "list pods", "get nodes n1")
	w.in(`{"metadata":{"labels":{"env":"dev"}}}`).allow("get pods shop/web")
	w.in(`{"metadata":{"name":"shop"}}`).deny("get pods shop/web")
}

// What a decision needs is read step by step, and nothing that cannot matter.
func TestNeeds(t *testing.T) {
	const look = "  - {name: look, effect: allow, when: 'object.spec.replicas < 5'}\n"
	const all = "  - {name: all, effect: allow}\n"
	const inDev = "  - {name: in-dev, effect: allow, match: {namespaceSelector: {matchLabels: {env: dev}}}}\n"
	const dev, prod = `{"metadata":{"labels":{"env":"dev"}}}`, `{"metadata":{"labels":{"env":"prod"}}}`
	for _, row := range []struct{ name, rules, request, namespace, want string }{
		{"nothing", all, "patch pods shop/web", dev, "allow"},
		{"an object", look, "patch pods shop/web", dev, "preview allow"},
		{"an object, of a read", all + "  - {name: r, effect: deny, when: 'object != null'}", "get pods shop/web", dev, "allow"},
		{"nothing could allow it", "  - {name: r, effect: deny, when: 'object.spec.replicas > 5'}", "patch pods shop/web", dev, "deny"},
		{"nothing could allow it, the namespace least", "  - {name: r, effect: deny, match: {namespaceSelector: {matchLabels: {env: prod}}}}", "patch pods shop/web", dev, "deny"},
		{"another thing is allowed", "  - {name: a, effect: allow, match: {resources: [services]}, when: 'object != null'}\n  - {name: r, effect: deny, when: 'object == null'}", "patch pods shop/web", dev, "deny"},
		{"denied whatever it is", look + "  - {name: no, effect: deny, match: {namespaces: [shop]}}", "patch pods shop/web", dev, "deny"},
		{"denied by a condition that needs nothing", look + inDev + "  - {name: no, effect: deny, when: 'action.name == \"web\"'}", "patch pods shop/web", dev, "deny"},
		{"a failure that needs nothing", look + "  - {name: no, effect: allow, when: 'args.x == 1'}", "patch pods shop/web", dev, "deny"},
		{"a namespace that it selects", inDev, "patch pods shop/web", dev, "namespace allow"},
		{"a namespace that it does not", inDev, "patch pods shop/web", prod, "namespace deny"},
		{"no namespace", inDev, "get nodes n1", dev, "deny"},
		{"all namespaces", inDev, "list pods", dev, "deny"},
		{"a rule about another thing", all + "  - {name: r, effect: deny, match: {resources: [services], namespaceSelector: {matchLabels: {env: prod}}}}", "patch pods shop/web", prod, "allow"},
		{"restricted by namespace", all + "  - {name: r, effect: deny, match: {namespaceSelector: {matchLabels: {env: prod}}}}", "patch pods shop/web", prod, "namespace deny"},
		{"allowed whatever its namespace", all + inDev, "patch pods shop/web", dev, "allow"},
		{"asked whatever its namespace", "  - {name: ask, effect: require_approval, approval: {approvers: [sre]}}\n" + inDev, "patch pods shop/web", dev, "require_approval"},
		{"allowed, unless another rule's condition fails", all + look, "patch pods shop/web", dev, "preview allow"},
		{"the namespace rules out what needs a preview", "  - {name: r, effect: allow, match: {namespaceSelector: {matchLabels: {env: dev}}}, when: 'object.spec.replicas < 5'}", "patch pods shop/web", prod, "namespace deny"},
		{"the namespace does not", "  - {name: r, effect: allow, match: {namespaceSelector: {matchLabels: {env: dev}}}, when: 'object.spec.replicas < 5'}", "patch pods shop/web", dev, "namespace preview allow"},
		{"the namespace settles what another rule needs a preview for", inDev + "  - {name: r, effect: deny, when: 'object.spec.replicas > 5'}", "patch pods shop/web", prod, "namespace deny"},
		{"or not", inDev + "  - {name: r, effect: deny, when: 'object.spec.replicas > 5'}", "patch pods shop/web", dev, "namespace preview allow"},
		{"both in one condition", "  - {name: r, effect: allow, when: 'namespaceObject.metadata.labels.env == \"dev\" && object.spec.replicas < 5'}", "patch pods shop/web", dev, "namespace preview allow"},
		{"namespaceObject of what lies in none", "  - {name: r, effect: allow, when: 'namespaceObject == null'}", "patch nodes n1", dev, "allow"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := given(t, row.rules)
			var got []string
			for len(got) < 3 {
				d := w.decide(row.request)
				switch d.Needs {
				case 0:
					got = append(got, string(d.Effect))
				case NeedNamespace:
					got = append(got, "namespace")
					w = w.in(row.namespace)
					continue
				case NeedPreview:
					got = append(got, "preview")
					w = w.seeing("", `{"spec":{"replicas":3}}`)
					continue
				default:
					t.Fatalf("needs %s at once", d.Needs)
				}
				break
			}
			if text := strings.Join(got, " "); text != row.want {
				t.Errorf("%s; want %s", text, row.want)
			}
		})
	}
	// Of several Actions, all that any of them needs.
	if d := Strictest([]Decision{{Needs: NeedNamespace}, {Effect: Allow}, {Needs: NeedPreview}}); d.Needs != NeedNamespace|NeedPreview {
		t.Errorf("got %+v", d)
	}
}
