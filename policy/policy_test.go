package policy

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"countersign/action"
)

// noon is when everything here happens.
var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

var approverSets = []string{"sre", "security"}

// world is a policy and a caller, to be asked about requests.
type world struct {
	t   *testing.T
	set *Set
	req Request
}

// given makes a world from rules as they stand under spec.rules.
func given(t *testing.T, rules string) *world {
	t.Helper()
	set, err := load(file1(rules))
	if err != nil {
		t.Fatal(err)
	}
	return &world{t, set, Request{
		Principal: &action.Principal{Issuer: "https://idp", Subject: "bot-1", Username: "bot", Groups: []string{"agents", "team-shop"}, Client: "devin"},
		Tool:      "some_tool", Now: noon,
	}}
}

// file1 is a policy of some rules and no guards, which guards_test.go is about.
func file1(rules string) fstest.MapFS {
	return fstest.MapFS{"p.yaml": {Data: []byte("apiVersion: countersign/v1alpha1\nkind: Policy\nmetadata: {name: p}\nspec:\n  guardsOff: [" +
		strings.Join(guardNames(), ", ") + "]\n  rules:\n" + strings.Trim(rules, "\n") + "\n")}}
}

func guardNames() (names []string) {
	for _, m := range regexp.MustCompile(`(?m)^ +- name: (guard:.*)$`).FindAllStringSubmatch(string(guards), -1) {
		names = append(names, m[1])
	}
	return names
}

func load(files fstest.MapFS) (*Set, error) { return Load(files, Known{Approvers: approverSets}) }

// with changes the caller, the tool, the arguments or what the preview shows.
func (w *world) with(change func(*Request)) *world {
	req := w.req
	principal := *req.Principal
	req.Principal = &principal
	change(&req)
	return &world{w.t, w.set, req}
}

// seeing gives the preview, as JSON; empty is no object.
func (w *world) seeing(live, result string) *world {
	w.t.Helper()
	preview := action.NewPreview(object(w.t, live), object(w.t, result))
	return w.with(func(r *Request) { r.Preview = &preview })
}

func object(t *testing.T, text string) map[string]any {
	t.Helper()
	if text == "" {
		return nil
	}
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func (w *world) allow(requests ...string) {
	w.t.Helper()
	w.expect(Allow, false, requests)
}
func (w *world) deny(requests ...string) { w.t.Helper(); w.expect(Deny, false, requests) }
func (w *world) needsApproval(requests ...string) {
	w.t.Helper()
	w.expect(RequireApproval, false, requests)
}
func (w *world) needsPreview(requests ...string) { w.t.Helper(); w.expect("", true, requests) }

func (w *world) expect(effect Effect, preview bool, requests []string) {
	w.t.Helper()
	for _, text := range requests {
		d := w.decide(text)
		if d.Effect != effect || (d.Needs == NeedPreview) != preview {
			w.t.Errorf("%s: got %+v; want %q, preview %v", text, d, effect, preview)
		}
	}
}

func (w *world) decide(text string) Decision {
	w.t.Helper()
	req := w.req
	req.Action = request(w.t, text)
	return w.set.Decide(req)
}

// request reads "VERB RESOURCE[/SUBRESOURCE] [NAMESPACE/][NAME]", such as "get
// pods/log shop/web", "list pods" over all namespaces, "list pods shop/" in one,
// "apply namespaces shop", with "@CLUSTER" behind it for another cluster.
func request(t *testing.T, text string) *action.Action {
	t.Helper()
	text, cluster, _ := strings.Cut(text, "@")
	words := strings.Fields(text)
	if len(words) < 2 || len(words) > 3 {
		t.Fatalf("bad request %q", text)
	}
	a := &action.Action{Cluster: "local", Verb: words[0]}
	if cluster != "" {
		a.Cluster = cluster
	}
	if a.Verb == "apply" {
		a.Verb, a.Options.PatchType = action.Patch, action.ApplyPatch
	}
	groupResource, subresource, _ := strings.Cut(words[1], "/")
	a.Subresource = subresource
	a.Resource.Resource, a.Resource.Group, _ = strings.Cut(groupResource, ".")
	a.Resource.Version = "v1"
	a.Resource.Namespaced = !slices.Contains([]string{"namespaces", "nodes", "persistentvolumes"}, groupResource)
	if len(words) == 3 {
		if a.Resource.Namespaced {
			var slash bool
			if a.Namespace, a.Name, slash = strings.Cut(words[2], "/"); !slash {
				t.Fatalf("bad request %q: NAMESPACE/NAME expected", text)
			}
		} else {
			a.Name = words[2]
		}
	}
	return a
}

func TestDefaultDeny(t *testing.T) {
	w := given(t, `
  - {name: read, effect: allow, match: {verbs: [get], resources: [pods]}}
`)
	w.allow("get pods shop/web")
	w.deny("list pods shop/", "get configmaps shop/web", "delete pods shop/web", "get pods.example.com shop/web")
	if d := w.decide("delete pods shop/web"); len(d.Rules) != 0 || d.Reason != "no policy rule allows delete pods shop/web" {
		t.Errorf("got %+v", d)
	}
}

func TestStricterEffectWins(t *testing.T) {
	// The strict rules stand both before and after the lax ones: order does not matter.
	w := given(t, `
  - {name: no-prod-deletes, effect: deny, match: {verbs: [delete], namespaces: [prod]}, message: Ask the platform team.}
  - {name: everything, effect: allow}
  - {name: ask, effect: require_approval, match: {verbs: [patch, delete]}, approval: {approvers: [sre], grant: allowed}}
  - {name: ask-in-prod, effect: require_approval, match: {namespaces: [prod]}, approval: {approvers: [security], count: 2, expires: 1h, reason: required, grant: never, channel: C0123ABCD}, message: Production.}
  - {name: no-exec, effect: deny, match: {subresources: [exec]}}
`)
	w.allow("get pods shop/web", "create pods shop/web")
	w.needsApproval("patch pods shop/web", "delete pods shop/web", "get pods prod/web", "patch pods prod/web")
	w.deny("delete pods prod/web", "create pods/exec shop/web", "create pods/exec prod/web")

	// Every matching requirement must be met.
	d := w.decide("patch pods prod/web")
	want := []Approval{
		{Rule: "ask", Approvers: []string{"sre"}, Count: 1, Expires: 15 * time.Minute},
		{Rule: "ask-in-prod", Approvers: []string{"security"}, Count: 2, Expires: time.Hour, ReasonRequired: true, NoGrant: true, Channel: "C0123ABCD"},
	}
	if got, wanted := asJSON(t, d.Approvals), asJSON(t, want); got != wanted {
		t.Errorf("requirements %s; want %s", got, wanted)
	}
	for _, row := range []struct{ request, rules, reason string }{
		{"get pods shop/web", "everything", ""},
		{"patch pods shop/web", "ask", "policy asks for approval: ask"},
		{"patch pods prod/web", "ask ask-in-prod", "Production."},
		{"delete pods prod/web", "no-prod-deletes", "Ask the platform team."},
		{"create pods/exec shop/web", "no-exec", "rule no-exec denies it"},
	} {
		if d := w.decide(row.request); strings.Join(d.Rules, " ") != row.rules || d.Reason != row.reason {
			t.Errorf("%s: rules %v, reason %q; want %q, %q", row.request, d.Rules, d.Reason, row.rules, row.reason)
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Every match field counts, and all of them together.
func TestMatchFields(t *testing.T) {
	w := given(t, `
  - name: all-fields
    effect: allow
    match:
      principals: {subjects: ["bot-*"], groups: [agents], issuers: ["https://idp"], clients: [devin]}
      clusters: [local]
      tools: [some_tool]
      verbs: [get]
      resources: [pods]
      subresources: ["", log]
      namespaces: [shop]
      names: ["web-*"]
`)
	const good = "get pods shop/web-1"
	w.allow(good, "get pods/log shop/web-1")
	w.deny("get pods shop/web-1@other", "delete pods shop/web-1", "get services shop/web-1", "get pods/exec shop/web-1", "get pods prod/web-1", "get pods shop/api-1")
	for name, change := range map[string]func(*Request){
		"subject":         func(r *Request) { r.Principal.Subject = "person" },
		"group":           func(r *Request) { r.Principal.Groups = []string{"team-shop"} },
		"no groups":       func(r *Request) { r.Principal.Groups = nil },
		"issuer":          func(r *Request) { r.Principal.Issuer = "https://idp2" },
		"client":          func(r *Request) { r.Principal.Client = "" },
		"tool":            func(r *Request) { r.Tool = "some_tool2" },
		"username is not": func(r *Request) { r.Principal.Subject, r.Principal.Username = "x", "bot-1" },
	} {
		if d := w.with(change).decide(good); d.Effect != Deny {
			t.Errorf("another %s: %+v", name, d)
		}
	}
}

func TestGlobsAndExclusions(t *testing.T) {
	w := given(t, `
  - name: r
    effect: allow
    match:
      principals: {groups: ["*", "!suspended"]}
      resources: ["*", "!secrets", "!*.rbac.authorization.k8s.io"]
      namespaces: ["team-*", "!team-*-prod"]
`)
	w.allow("get pods team-a/x", "get deployments.apps team-a/x", "get secrets.example.com team-a/x", "get pods team-/x")
	w.deny("get secrets team-a/x", "get roles.rbac.authorization.k8s.io team-a/x", "get pods team-a-prod/x", "get pods team/x", "get pods my-team-a/x")
	w.with(func(r *Request) { r.Principal.Groups = []string{"agents", "suspended"} }).deny("get pods team-a/x")

	// Exclusions alone: everything else.
	w = given(t, `
  - {name: r, effect: allow, match: {verbs: ["!delete"], names: ["!root"]}}
`)
	w.allow("get pods shop/web", "patch pods shop/web")
	w.deny("delete pods shop/web", "get pods shop/root")
}

// Fields that look alike, in two rules or in two places, are looked at apart.
func TestFieldsThatLookAlike(t *testing.T) {
	w := given(t, `
  - {name: a, effect: allow, match: {names: ["a b", "web"]}}
  - {name: b, effect: allow, match: {names: ["a", "b web"]}}
  - {name: c, effect: allow, match: {names: ["c, !d"]}}
  - {name: d, effect: allow, match: {names: ["c", "!d"]}}
  - {name: e, effect: allow, match: {names: ["e"], namespaces: ["e"]}}
`)
	for name, want := range map[string]string{"x/a b": "a", "x/web": "a", "x/a": "b", "x/b web": "b", "x/c, !d": "c", "x/c": "d", "e/e": "e", "e/x": ""} {
		a := request(t, "get roles.rbac.authorization.k8s.io x/x")
		a.Namespace, a.Name, _ = strings.Cut(name, "/")
		w.req.Action = a
		if d := w.set.Decide(w.req); strings.Join(d.Rules, " ") != want {
			t.Errorf("%s: %+v; want %q", name, d, want)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, row := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "A", false}, {"a", "ab", false},
		{"*", "", true}, {"*", "a/b.c", true}, {"a*", "a", true}, {"a*", "ba", false}, {"*a", "ba", true}, {"*a", "ab", false},
		{"a*c", "abc", true}, {"a*c", "ac", true}, {"a*c", "abcd", false}, {"ab*b", "ab", false}, {"ab*ba", "aba", false},
		{"*b*", "abc", true}, {"*b*", "ac", false}, {"a*b*c", "a-b-b-c", true}, {"a*b*c", "a-c-b", false}, {"**", "x", true},
		{"a?", "ab", false}, {"[a]", "a", false}, {"a.c", "abc", false}, // only * is special
	} {
		if got := glob(row.pattern, row.s); got != row.want {
			t.Errorf("glob(%q, %q) = %v", row.pattern, row.s, got)
		}
	}
}

// A list over all namespaces is allowed only by what allows every namespace,
// and denied by what denies any.
func TestAllNamespaces(t *testing.T) {
	w := given(t, `
  - {name: one, effect: allow, match: {resources: [pods], namespaces: [shop]}}
  - {name: every, effect: allow, match: {resources: [services]}}
  - {name: star, effect: allow, match: {resources: [endpoints], namespaces: ["*"]}}
  - {name: but-one, effect: allow, match: {resources: [configmaps], namespaces: ["*", "!kube-system"]}}
  - {name: not-one, effect: allow, match: {resources: [events], namespaces: ["!kube-system"]}}
  - {name: globs-that-add-up, effect: allow, match: {resources: [leases], namespaces: ["a*", "*"]}}
`)
	w.allow("list pods shop/", "list services", "list services shop/", "list endpoints", "list configmaps shop/", "list leases")
	w.deny("list pods", "list configmaps", "list configmaps kube-system/", "list events")

	w = given(t, `
  - {name: all, effect: allow}
  - {name: not-there, effect: deny, match: {resources: [pods], namespaces: [kube-system]}}
  - {name: ask-there, effect: require_approval, match: {resources: [services], namespaces: [kube-system]}, approval: {approvers: [sre]}}
`)
	w.deny("list pods", "list pods kube-system/")
	w.needsApproval("list services")
	w.allow("list pods shop/", "list nodes", "list services shop/")
}

// A request without a name is about every name.
func TestAllNames(t *testing.T) {
	w := given(t, `
  - {name: one, effect: allow, match: {resources: [pods], names: [web]}}
  - {name: all, effect: allow, match: {resources: [services]}}
  - {name: not-root, effect: deny, match: {resources: [services], names: [root]}}
`)
	w.allow("get pods shop/web", "get services shop/web")
	w.deny("list pods shop/", "get services shop/root", "list services shop/")
}

// Server-side apply creates or patches: allowing needs both, refusing either.
func TestApplyIsCreateAndPatch(t *testing.T) {
	for _, row := range []struct {
		verbs string
		want  Effect
	}{
		{"create, patch", Allow}, {"'*'", Allow}, {"create", Deny}, {"patch", Deny}, {"update", Deny}, {"'!delete'", Allow}, {"'*', '!create'", Deny},
	} {
		w := given(t, "  - {name: r, effect: allow, match: {verbs: ["+row.verbs+"]}}")
		if d := w.decide("apply pods shop/web"); d.Effect != row.want {
			t.Errorf("allow %s: apply gives %+v; want %s", row.verbs, d, row.want)
		}
	}
	for _, row := range []struct {
		verbs string
		want  Effect
	}{
		{"create, patch", Deny}, {"create", Deny}, {"patch", Deny}, {"'*', '!create'", Deny}, {"delete", Allow}, {"update", Allow},
	} {
		w := given(t, "  - {name: all, effect: allow}\n  - {name: r, effect: deny, match: {verbs: ["+row.verbs+"]}}")
		if d := w.decide("apply pods shop/web"); d.Effect != row.want {
			t.Errorf("deny %s: apply gives %+v; want %s", row.verbs, d, row.want)
		}
	}
	// Two rules that each allow half do not add up.
	given(t, "  - {name: a, effect: allow, match: {verbs: [create]}}\n  - {name: b, effect: allow, match: {verbs: [patch]}}").deny("apply pods shop/web")
}

// A namespace lies in itself, as the API server's own authorizer has it.
func TestNamespacesLieInThemselves(t *testing.T) {
	w := given(t, `
  - {name: r, effect: allow, match: {namespaces: [shop]}}
`)
	w.allow("get namespaces shop", "delete namespaces shop")
	w.deny("get namespaces prod", "list namespaces", "get nodes shop", "get namespaces.example.com prod/shop")

	w = given(t, `
  - {name: all, effect: allow}
  - {name: r, effect: deny, match: {namespaces: [prod]}}
`)
	w.deny("delete namespaces prod", "list namespaces", "apply namespaces prod")
	w.allow("delete namespaces shop", "delete nodes prod")
}

// What is allowed in namespaces is not allowed outside of them; a rule that
// names the outside, or no namespaces at all, reaches it.
func TestOutsideOfNamespaces(t *testing.T) {
	w := given(t, `
  - {name: any, effect: allow, match: {verbs: [get]}}
  - {name: star, effect: allow, match: {verbs: [patch], namespaces: ["*"]}}
  - {name: but-one, effect: allow, match: {verbs: [create], namespaces: ["!kube-system"]}}
  - {name: outside, effect: allow, match: {verbs: [delete], namespaces: [""]}}
`)
	w.allow("get nodes n", "get pods shop/web", "patch pods shop/web", "create pods shop/web", "delete nodes n")
	w.deny("patch nodes n", "create nodes n", "delete pods shop/web")

	// A rule that restricts is about what it names.
	w = given(t, `
  - {name: all, effect: allow}
  - {name: not-in-prod, effect: deny, match: {namespaces: ["prod-*"]}}
  - {name: not-anywhere, effect: deny, match: {verbs: [delete], namespaces: ["*"]}}
`)
	w.allow("patch nodes n", "get pods shop/web")
	w.deny("patch pods prod-1/web", "delete pods shop/web", "delete nodes n")
}

func TestSubresources(t *testing.T) {
	w := given(t, `
  - {name: only-scale, effect: allow, match: {verbs: [patch], resources: [deployments.apps], subresources: [scale]}}
  - {name: only-object, effect: allow, match: {verbs: [patch], resources: [statefulsets.apps], subresources: [""]}}
  - {name: all-but, effect: allow, match: {resources: [pods], subresources: ["!exec", "!attach"]}}
`)
	w.allow("patch deployments.apps/scale shop/web", "patch statefulsets.apps shop/db", "get pods shop/web", "get pods/log shop/web")
	w.deny("patch deployments.apps shop/web", "patch deployments.apps/status shop/web", "patch statefulsets.apps/scale shop/db",
		"get pods/exec shop/web", "create pods/attach shop/web")
}

func TestConditions(t *testing.T) {
	const live = `{"metadata":{"name":"web","labels":{"team":"shop"}},"spec":{"replicas":2}}`
	const result = `{"metadata":{"name":"web","labels":{"team":"shop"}},"spec":{"replicas":5}}`
	w := given(t, `
  - {name: never, effect: deny, when: 'false'}
`).seeing(live, result).with(func(r *Request) { r.Args = map[string]any{"replicas": int64(5), "reason": "busy"} })

	for _, row := range []struct {
		when string
		want bool
	}{
		{`object.spec.replicas <= 5`, true},
		{`object.spec.replicas > 5`, false},
		{`object.spec.replicas - oldObject.spec.replicas <= 3`, true},
		{`oldObject.metadata.labels.team == "shop"`, true},
		{`has(object.spec.paused)`, false},
		{`size(diff) == 1 && diff[0].op == "replace" && diff[0].path == "/spec/replicas" && diff[0].old == 2 && diff[0].new == 5`, true},
		{`diff.all(d, d.path.startsWith("/spec/"))`, true},
		{`diff.exists(d, d.path.startsWith("/metadata/"))`, false},
		{`args.replicas == 5 && args.reason.contains("bus")`, true},
		{`has(args.force) && args.force`, false},
		{`principal.username == "bot" && principal.subject == "bot-1" && principal.issuer == "https://idp" && principal.client == "devin" && principal.onBehalfOf == ""`, true},
		{`"agents" in principal.groups`, true},
		{`"admins" in principal.groups`, false},
		{`tool == "some_tool"`, true},
		{`action.verb == "patch" && action.resource == "deployments" && action.group == "apps" && action.subresource == "scale" && action.namespace == "shop" && action.name == "web" && action.cluster == "local"`, true},
		{`action.verbs == ["patch"]`, true},
		{`now.getHours() == 12 && now < timestamp("2026-03-14T12:00:01Z")`, true},
		{`now.getDayOfWeek() in [1, 2, 3, 4, 5]`, false},           // a Saturday
		{`quantity("1Gi").isGreaterThan(quantity("500Mi"))`, true}, // Kubernetes' own library
		{`"a-b".matches("^[a-z]-[a-z]$")`, true},
	} {
		w.set = given(t, "  - {name: r, effect: allow, when: '"+row.when+"'}").set
		want := map[bool]Effect{true: Allow, false: Deny}[row.want]
		if d := w.decide("patch deployments.apps/scale shop/web"); d.Effect != want {
			t.Errorf("when %s: %+v; want %s", row.when, d, want)
		}
	}
}

// A new object has no oldObject, a deleted one no object.
func TestConditionsWithoutObject(t *testing.T) {
	w := given(t, `
  - {name: r, effect: allow, when: 'oldObject == null && object != null || action.verb == "delete" && object == null && oldObject != null'}
`)
	const some = `{"metadata":{"name":"web"}}`
	w.seeing("", some).allow("apply pods shop/web")
	w.seeing(some, "").allow("delete pods shop/web")
	w.seeing(some, some).deny("apply pods shop/web", "delete pods shop/web")
}

func TestNeedsPreview(t *testing.T) {
	for _, row := range []struct{ name, rules, needs, not string }{
		{"object", `  - {name: r, effect: allow, match: {verbs: [patch]}, when: 'object.spec.replicas < 5'}`, "patch pods shop/web", "delete pods shop/web"},
		{"oldObject", `  - {name: r, effect: allow, match: {namespaces: [shop]}, when: 'oldObject != null'}`, "patch pods shop/web", "patch pods prod/web"},
		{"diff", `  - {name: r, effect: allow, match: {resources: [pods]}, when: 'size(diff) < 3'}`, "patch pods shop/web", "patch services shop/web"},
		{"deep in a macro", `  - {name: r, effect: allow, match: {resources: [pods]}, when: '[1].exists(x, x == object.spec.replicas)'}`, "patch pods shop/web", "patch services shop/web"},
		{"a deny rule", `  - {name: a, effect: allow}
  - {name: r, effect: deny, match: {resources: [pods]}, when: 'object.spec.hostNetwork'}`, "patch pods shop/web", "patch services shop/web"},
		{"a rule that asks", `  - {name: a, effect: allow}
  - {name: r, effect: require_approval, match: {resources: [pods]}, when: 'size(diff) > 3', approval: {approvers: [sre]}}`, "patch pods shop/web", "patch services shop/web"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := given(t, row.rules)
			w.needsPreview(row.needs)
			if d := w.decide(row.not); d.Needs != 0 {
				t.Errorf("%s needs a preview, though no rule about it looks at one: %+v", row.not, d)
			}
		})
	}
	t.Run("attributes, arguments and time need none", func(t *testing.T) {
		w := given(t, `
  - {name: r, effect: allow, when: 'args.object == 1 && action.name == "web" && principal.username == "bot" && now != timestamp("2026-01-01T00:00:00Z")'}
`).with(func(r *Request) { r.Args = map[string]any{"object": int64(1)} })
		w.allow("patch pods shop/web")
	})
	t.Run("not when something denies already", func(t *testing.T) {
		w := given(t, `
  - {name: look, effect: allow, when: 'object.spec.replicas < 5'}
  - {name: no-prod, effect: deny, match: {namespaces: [prod]}}
`)
		w.deny("patch pods prod/web")
		w.needsPreview("patch pods shop/web")
	})
	t.Run("a read has nothing to preview", func(t *testing.T) {
		given(t, `
  - {name: look, effect: allow, when: 'object == null && size(diff) == 0'}
`).allow("get pods shop/web", "list pods shop/")
	})
	t.Run("with it, decided", func(t *testing.T) {
		w := given(t, `
  - {name: look, effect: allow, when: 'object.spec.replicas < 5'}
`)
		w.seeing("", `{"spec":{"replicas":4}}`).allow("patch pods shop/web")
		w.seeing("", `{"spec":{"replicas":5}}`).deny("patch pods shop/web")
	})
}

// What cannot be evaluated denies, whatever the rule's effect, and says which
// rule and why.
func TestUnevaluableRuleDenies(t *testing.T) {
	for _, row := range []struct{ name, effect, when, reason string }{
		{"absent argument", "allow", `args.nothing == 1`, "no such key: nothing"},
		{"absent field", "deny", `object.spec.hostPID == true`, "no such key: hostPID"},
		{"absent object", "deny", `oldObject.spec.x == 1`, "no such key: spec"},
		{"wrong type", "allow", `args.list + 1 == 2`, "no such overload"},
		{"division by zero", "allow", `1 / (size(args.list) - 300) == 1`, "its condition failed on a value"},
		{"not a truth value", "allow", `args.list`, "instead of true or false"},
		{"index out of range", "require_approval", `diff[7].path == "x"`, "its condition failed on a value"},
		{"a value that it fails on is not told", "allow", `int(object.spec.password) == 1`, "its condition failed on a value"},
		{"too expensive", "allow", `!args.text.contains(args.text + "b")`, "cost limit exceeded"},
	} {
		t.Run(row.name, func(t *testing.T) {
			approval := ""
			if row.effect == "require_approval" {
				approval = ", approval: {approvers: [sre]}"
			}
			w := given(t, "  - {name: all, effect: allow}\n  - {name: broken-rule, effect: "+row.effect+", match: {resources: [pods]}, when: '"+row.when+"'"+approval+"}").
				seeing("", `{"spec":{"password":"hunter2"}}`).with(func(r *Request) { r.Args = map[string]any{"list": numbers(300), "text": strings.Repeat("a", 12_000)} })
			d := w.decide("patch pods shop/web")
			if d.Effect != Deny || !slices.Equal(d.Rules, []string{"broken-rule"}) ||
				!strings.Contains(d.Reason, "rule broken-rule could not be evaluated: ") || !strings.Contains(d.Reason, row.reason) || strings.Contains(d.Reason, "hunter2") {
				t.Errorf("got %+v; want a denial that says %q", d, row.reason)
			}
			w.allow("patch services shop/web") // the rule is not about them
		})
	}
}

func TestStrictest(t *testing.T) {
	allowed := Decision{Effect: Allow, Rules: []string{"a"}}
	other := Decision{Effect: Allow, Rules: []string{"b"}}
	ask := Decision{Effect: RequireApproval, Rules: []string{"q"}, Reason: "Q.", Approvals: []Approval{{Rule: "q", Count: 1}}}
	ask2 := Decision{Effect: RequireApproval, Rules: []string{"q", "r"}, Reason: "R.", Approvals: []Approval{{Rule: "q", Count: 1}, {Rule: "r", Count: 2}}}
	deny := Decision{Effect: Deny, Rules: []string{"d"}, Reason: "D."}
	unruled := Decision{Effect: Deny, Reason: "no policy rule allows it"}
	look := Decision{Needs: NeedPreview}
	for _, row := range []struct {
		name string
		in   []Decision
		want Decision
	}{
		{"none", nil, Decision{}},
		{"all allowed", []Decision{allowed, other, allowed}, Decision{Effect: Allow, Rules: []string{"a", "b"}}},
		{"one asks", []Decision{allowed, ask, other}, ask},
		{"every requirement", []Decision{ask, ask2}, Decision{Effect: RequireApproval, Rules: []string{"q", "r"}, Reason: "Q.; R.", Approvals: ask2.Approvals}},
		{"one denied", []Decision{allowed, deny, ask}, deny},
		{"two denied", []Decision{deny, unruled, deny}, Decision{Effect: Deny, Rules: []string{"d"}, Reason: "D.; no policy rule allows it"}},
		{"one looks, one allowed", []Decision{look, allowed}, Decision{Effect: Allow, Rules: []string{"a"}, Needs: NeedPreview}},
		{"one allowed, one looks", []Decision{allowed, look}, Decision{Effect: Allow, Rules: []string{"a"}, Needs: NeedPreview}},
		{"one asks, one looks", []Decision{ask, look}, Decision{Effect: RequireApproval, Rules: ask.Rules, Reason: ask.Reason, Approvals: ask.Approvals, Needs: NeedPreview}},
		{"nothing to look at once denied", []Decision{look, deny}, deny},
		{"nor after", []Decision{deny, look}, deny},
	} {
		if got, want := asJSON(t, Strictest(row.in)), asJSON(t, row.want); got != want {
			t.Errorf("%s: got %s; want %s", row.name, got, want)
		}
	}
}

func TestCould(t *testing.T) {
	get := action.Scope{Verbs: []string{action.Get}}
	apply := action.Scope{Verbs: []string{action.Create, action.Patch}}
	scale := action.Scope{Verbs: []string{action.Patch}, Resource: "deployments.apps", Subresource: "scale"}
	for _, row := range []struct {
		name, rules string
		scopes      []action.Scope
		want        bool
	}{
		{"an allow rule", `  - {name: r, effect: allow, match: {verbs: [get]}}`, []action.Scope{get}, true},
		{"a rule that asks", `  - {name: r, effect: require_approval, match: {verbs: [get]}, approval: {approvers: [sre]}}`, []action.Scope{get}, true},
		{"nothing", `  - {name: r, effect: allow, match: {verbs: [list]}}`, []action.Scope{get}, false},
		{"one namespace is enough", `  - {name: r, effect: allow, match: {namespaces: [shop]}}`, []action.Scope{get}, true},
		{"one resource is enough", `  - {name: r, effect: allow, match: {resources: [pods]}}`, []action.Scope{get}, true},
		{"a condition may hold", `  - {name: r, effect: allow, when: 'now.getHours() > 22'}`, []action.Scope{get}, true},
		{"another resource", `  - {name: r, effect: allow, match: {resources: [pods]}}`, []action.Scope{scale}, false},
		{"another subresource", `  - {name: r, effect: allow, match: {subresources: [log]}}`, []action.Scope{scale}, false},
		{"the object is not its subresource", `  - {name: r, effect: allow, match: {subresources: [scale]}}`, []action.Scope{get}, false},
		{"one of two verbs is not enough", `  - {name: r, effect: allow, match: {verbs: [patch]}}`, []action.Scope{apply}, false},
		{"nor is each by a rule of its own", "  - {name: r, effect: allow, match: {verbs: [patch]}}\n  - {name: s, effect: allow, match: {verbs: [create]}}", []action.Scope{apply}, false},
		{"both verbs", `  - {name: r, effect: allow, match: {verbs: [create, patch]}}`, []action.Scope{apply}, true},
		{"a rule that asks for one of two verbs", `  - {name: r, effect: require_approval, match: {verbs: [patch]}, approval: {approvers: [sre]}}`, []action.Scope{apply}, true},
		{"one of several scopes is enough", `  - {name: r, effect: allow, match: {verbs: [get]}}`, []action.Scope{scale, get}, true},
		{"another tool", `  - {name: r, effect: allow, match: {tools: [other_tool]}}`, []action.Scope{get}, false},
		{"another group", `  - {name: r, effect: allow, match: {principals: {groups: [admins]}}}`, []action.Scope{get}, false},
		{"denied whole", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {verbs: [get]}}", []action.Scope{get}, false},
		{"denied by tool", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {tools: [some_tool]}}", []action.Scope{get}, false},
		{"denied by caller", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {principals: {groups: [agents]}}}", []action.Scope{get}, false},
		{"denied to others", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {principals: {groups: [admins]}}}", []action.Scope{get}, true},
		{"denied in one namespace", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {namespaces: [prod]}}", []action.Scope{get}, true},
		{"denied in one cluster", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {clusters: [prod]}}", []action.Scope{get}, true},
		{"denied for one name", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {names: [web]}}", []action.Scope{get}, true},
		{"denied for one resource of any", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {resources: [secrets]}}", []action.Scope{get}, true},
		{"denied for the one resource", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {resources: ['deployments.*']}}", []action.Scope{scale}, false},
		{"denied sometimes", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, when: 'now.getHours() > 22'}", []action.Scope{get}, true},
		{"denied for one of its verbs", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {verbs: [create]}}", []action.Scope{apply}, false},
		{"denied for both of its verbs", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {verbs: [create, patch]}}", []action.Scope{apply}, false},
		{"one scope denied, one allowed", "  - {name: r, effect: allow}\n  - {name: d, effect: deny, match: {verbs: [get]}}", []action.Scope{get, scale}, true},
		{"a tool about own operations", `  - {name: r, effect: allow, match: {verbs: [list]}}`, nil, true},
	} {
		w := given(t, row.rules)
		d, could := w.set.Could(w.req.Principal, "some_tool", row.scopes)
		if could != row.want {
			t.Errorf("%s: could = %v, %+v", row.name, could, d)
		}
		if !could && (d.Effect != Deny || d.Reason == "") {
			t.Errorf("%s: refused without a reason: %+v", row.name, d)
		}
	}

	w := given(t, "  - {name: r, effect: allow}\n  - {name: frozen, effect: deny, match: {verbs: [patch]}, message: Code freeze.}")
	if d, _ := w.set.Could(w.req.Principal, "some_tool", []action.Scope{scale}); d.Reason != "Code freeze." || !slices.Equal(d.Rules, []string{"frozen"}) {
		t.Errorf("got %+v; want the rule's own message", d)
	}
}

// Whatever a request is allowed, its tool could be: Could never hides what
// Decide would allow.
func TestCouldFollowsDecide(t *testing.T) {
	requests := []string{"get pods shop/web", "list pods", "delete namespaces prod", "apply configmaps shop/a", "patch deployments.apps/scale prod/web", "get pods/log shop/web"}
	for _, rules := range []string{
		`  - {name: a, effect: allow, match: {namespaces: [shop]}}`,
		"  - {name: a, effect: allow}\n  - {name: d, effect: deny, match: {verbs: [delete]}}",
		"  - {name: a, effect: allow, match: {verbs: ['!patch']}}\n  - {name: d, effect: deny, match: {subresources: [log]}}",
		"  - {name: a, effect: allow, match: {resources: ['*', '!pods']}}\n  - {name: d, effect: deny, match: {verbs: [create]}}",
		"  - {name: a, effect: require_approval, match: {names: ['w*']}, approval: {approvers: [sre]}}",
	} {
		w := given(t, rules)
		for _, text := range requests {
			a := request(t, text)
			scope := action.Scope{Verbs: a.Verbs(), Resource: a.Resource.GroupResource(), Subresource: a.Subresource}
			d := w.decide(text)
			if _, could := w.set.Could(w.req.Principal, "some_tool", []action.Scope{scope}); d.Effect != Deny && !could {
				t.Errorf("%s is %s, but its tool is hidden under\n%s", text, d.Effect, rules)
			}
		}
	}
}
