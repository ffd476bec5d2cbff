package policy

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/action"
)

// Entries that no request can match are mistakes, whatever their field.
func TestEntriesThatNeverMatch(t *testing.T) {
	const rule = header + "\n  - name: r\n    effect: allow\n    match:\n      "
	known := Known{
		Clusters: []string{"local", "eu-1"},
		Tools: map[string][]action.Scope{
			"get_resource":     {{Verbs: []string{action.Get}}},
			"list_namespaces":  {{Verbs: []string{action.List}, Resource: "namespaces"}},
			"scale_deployment": {{Verbs: []string{action.Patch}, Resource: "deployments.apps", Subresource: "scale"}},
			"get_operation":    nil,
			"apply_manifest":   {{Verbs: []string{action.Create, action.Patch}}},
		},
		Resources: []string{"pods", "services", "ingresses.networking.k8s.io", "deployments.apps", "events", "events.events.k8s.io", "namespaces"},
	}
	for _, r := range guarded(t).set.rules { // which are held to it as well
		for _, p := range slices.Concat(r.match.resources.include, r.match.resources.exclude) {
			known.Resources = append(known.Resources, p.text)
		}
	}
	known.Resources = slices.Compact(slices.Sorted(slices.Values(known.Resources)))
	const verbs = "get, list, watch, create, update, patch, delete, deletecollection"
	const subs = "approval, attach, binding, ephemeralcontainers, eviction, exec, finalize, log, portforward, proxy, resize, scale, status, token"
	for _, row := range []struct{ name, match, want string }{
		{"verb", `verbs: [get, remove]`, `unknown verb "remove"; one of ` + verbs},
		{"empty verb", `verbs: [""]`, `unknown verb ""; one of ` + verbs},
		{"subresource in the resource", `resources: [pods/log]`, `resource "pods/log" can never match: write what is behind the slash under subresources`},
		{"a kind", `resources: ["!Deployment"]`, `resource "Deployment" can never match: resources are lower-case plurals with their group, such as deployments.apps`},
		{"empty resource", `resources: [""]`, `resource "" can never match: resources are lower-case plurals with their group, such as deployments.apps`},
		{"without its group", `resources: [deployments]`, `resource "deployments" can never match: there is none of this name; deployments.apps may be meant`},
		{"singular", `resources: [pod]`, `resource "pod" can never match: there is none of this name; pods may be meant`},
		{"singular with es", `resources: ["!ingress.networking.k8s.io"]`, `resource "ingress.networking.k8s.io" can never match: there is none of this name; ingresses.networking.k8s.io may be meant`},
		{"of two groups", `resources: [event]`, `resource "event" can never match: there is none of this name; events or events.events.k8s.io may be meant`},
		{"of another group", `resources: [pods.apps]`, `resource "pods.apps" can never match: there is none of this name; pods may be meant`},
		{"nothing near", `resources: [widgets]`, `resource "widgets" can never match: there is none of this name`},
		{"subresource", `subresources: ["", logs]`, `subresource "logs" can never match; there are ` + subs},
		{"subresource, with a star", `subresources: ["!x*"]`, `subresource "x*" can never match; there are ` + subs},
		{"namespace", `namespaces: [Shop]`, `namespace "Shop" can never match: names of namespaces are lower-case letters, digits and -`},
		{"namespace with a dot", `namespaces: ["team.*"]`, `namespace "team.*" can never match: names of namespaces are lower-case letters, digits and -`},
		{"name", `names: [shop/web]`, `name "shop/web" can never match: no object's name holds / or %`},
		{"cluster", `clusters: [locale]`, `cluster "locale" can never match: the configuration has local, eu-1`},
		{"cluster, excluded", `clusters: ["*", "!us-*"]`, `cluster "us-*" can never match: the configuration has local, eu-1`},
		{"tool", `tools: [scale_deployments]`, `tool "scale_deployments" can never match: this server has no such tool`},
		{"tool, with a star", `tools: ["*", "!set_*"]`, `tool "set_*" can never match: this server has no such tool`},
		{"all excluded", `namespaces: [prod-1, "!prod-*"]`, `namespaces can never match: everything in it is excluded`},
		{"all excluded, each by another", `names: [a, b, "!a", "!*b"]`, `names can never match: everything in it is excluded`},
		{"everything excluded", `verbs: ["*", "!*"]`, `verbs can never match: everything in it is excluded`},
		{"a tool's verb", `{tools: [scale_deployment, list_*], verbs: [get, delete]}`, `can never match: none of its tools sends such a request`},
		{"a tool's resource", `{tools: [scale_deployment], resources: [pods]}`, `can never match: none of its tools sends such a request`},
		{"a tool's subresource", `{tools: [get_resource], subresources: [log]}`, `can never match: none of its tools sends such a request`},
		{"one of a tool's two verbs", `{tools: [apply_manifest], verbs: [patch]}`, `can never match: each request of its tools is create and patch, and what allows it must be about all of these verbs`},
		{"a tool that sends nothing", `{tools: [get_operation], verbs: [get]}`, `can never match: none of its tools sends such a request`},
	} {
		mistakeRow{row.name, rule + row.match + " <1>", []string{"rule r: " + row.want}}.run(t, known)
	}

	for _, match := range []string{
		`{verbs: ["*"], resources: ["*", "!*.apps", "!pods"], subresources: ["", "*", "e*", "!exec"], namespaces: ["*", "", "prod-*", "!prod-1", "!kube-*"], names: ["system:*", "A.b"]}`,
		`resources: [widgets.example.com, "!widget.example.com", "*.k8s.io", "ingress*"]`, // what others define, nobody knows
		`{clusters: ["eu-*"], tools: ["*_*", "!get_*"]}`,
		`{tools: ["*"], verbs: [delete, get]}`, `{tools: [scale_deployment, get_resource], verbs: [get]}`,
		`{tools: [scale_deployment], subresources: ["sc*"], resources: ["deployments.*"], namespaces: [prod]}`,
		`{namespaces: [prod-1, "!prod-1*", shop]}`,
	} {
		if _, err := Load(fstest.MapFS{"p.yaml": {Data: []byte(rule + match + "\n")}}, known); err != nil {
			t.Errorf("%s: %v", match, err)
		}
	}
	// What restricts is about a request by one of its verbs.
	for _, effect := range []string{"deny", "require_approval, approval: {approvers: [sre]}"} {
		if _, err := Load(fstest.MapFS{"p.yaml": {Data: []byte(header + "  - {name: r, effect: " + effect + ", match: {tools: [apply_manifest], verbs: [patch]}}\n")}}, known); err != nil {
			t.Errorf("%s: %v", effect, err)
		}
	}
	// What is not known is not checked against.
	if _, err := Load(fstest.MapFS{"p.yaml": {Data: []byte(rule + "{tools: [x], clusters: [y], resources: [z], verbs: [get]}\n")}}, Known{}); err != nil {
		t.Error(err)
	}
}

// A rule whose fields together leave no request is reported.
func TestRulesThatNeverApply(t *testing.T) {
	known := Known{Resources: []string{"pods", "nodes", "namespaces", "services", "deployments.apps", "storageclasses.storage.k8s.io"}, Outside: []string{"nodes", "namespaces", "storageclasses.storage.k8s.io"}}
	const outside, selects = `what it is about lies in no namespace: write namespaces [""], or leave it out`, "what it is about lies in no namespace, and namespaceSelector selects nothing outside of one"
	const named, ofPod = "requests of its verbs are about all objects of a kind, and it is about some names", "of what it is about, nothing has the subresource: only pods do"
	for _, row := range []struct{ effect, match, want string }{
		{"allow", `{resources: [nodes, storageclasses.storage.k8s.io], namespaces: ["*"]}`, outside},
		{"allow", `{resources: [nodes], namespaces: ["!prod"]}`, outside},
		{"allow", `{resources: [nodes], namespaces: ["", shop]}`, ""},
		{"allow", `{resources: [nodes, pods], namespaces: [shop]}`, ""},
		{"allow", `{resources: ["*"], namespaces: [shop]}`, ""},
		{"allow", `{resources: [namespaces], namespaces: [shop]}`, ""},
		{"allow", `{resources: [widgets.example.com], namespaces: [shop]}`, ""},
		{"deny", `{resources: [nodes], namespaces: ["*"]}`, ""},
		{"allow", `{resources: [nodes], namespaceSelector: {matchLabels: {a: b}}}`, selects},
		{"deny", `{resources: [nodes], namespaceSelector: {matchLabels: {a: b}}}`, selects},
		{"allow", `{resources: [namespaces], namespaceSelector: {matchLabels: {a: b}}}`, ""},
		{"allow", `{verbs: [list, watch], names: [web]}`, named},
		{"allow", `{verbs: [list], names: ["*", "!web"]}`, named},
		{"allow", `{verbs: [list], names: ["*"]}`, ""},
		{"allow", `{verbs: [get, list], names: [web]}`, ""},
		{"allow", `{names: [web]}`, ""},
		{"deny", `{verbs: [list], names: [web]}`, ""},
		{"allow", `{resources: [deployments.apps], subresources: [log]}`, ofPod},
		{"deny", `{resources: [services, nodes], subresources: [exec, attach]}`, ofPod},
		{"allow", `{resources: [deployments.apps, pods], subresources: [log]}`, ""},
		{"allow", `{resources: [deployments.apps], subresources: [log, scale]}`, ""},
		{"allow", `{resources: [deployments.apps], subresources: ["*"]}`, ""},
		{"allow", `{resources: ["*"], subresources: [log]}`, ""},
		{"allow", `{resources: [widgets.example.com], subresources: [log]}`, ""},
		{"allow", `{subresources: [log]}`, ""},
	} {
		files := file1("  - {name: r, effect: " + row.effect + ", match: " + row.match + "}\n  - {name: other, effect: allow}")
		set, err := Load(files, known)
		if err != nil {
			t.Errorf("%s: %v", row.match, err)
			continue
		}
		var want []string
		if row.want != "" {
			want = []string{"p.yaml:7: rule r: can never apply: " + row.want}
		}
		if got := set.Warnings(); !slices.Equal(got, want) {
			t.Errorf("%s %s: got %q; want %q", row.effect, row.match, got, want)
		}
		if set, err = Load(files, Known{}); err == nil && row.want != named && len(set.Warnings()) > 0 {
			t.Errorf("%s: of kinds of which nothing is known: %q", row.match, set.Warnings())
		}
	}
}

// A rule that a denial without a condition makes void is reported, and one that
// only nearly is, is not.
func TestShadowedRules(t *testing.T) {
	for _, row := range []struct {
		name, rule, deny string
		want             bool
	}{
		{"everything", `{name: r, effect: allow}`, `{name: d, effect: deny}`, true},
		{"what asks", `{name: r, effect: require_approval, approval: {approvers: [sre]}}`, `{name: d, effect: deny}`, true},
		{"the same", `{name: r, effect: allow, match: {verbs: [get], names: [web]}}`, `{name: d, effect: deny, match: {verbs: [get], names: [web]}}`, true},
		{"a part", `{name: r, effect: allow, match: {verbs: [get], resources: [pods], namespaces: [prod-1]}}`, `{name: d, effect: deny, match: {verbs: [get, list], resources: ["*"], namespaces: ["prod-*"]}}`, true},
		{"a star of a star", `{name: r, effect: allow, match: {namespaces: ["prod-eu-*"]}}`, `{name: d, effect: deny, match: {namespaces: ["prod-*"]}}`, true},
		{"each of several", `{name: r, effect: allow, match: {names: [a, b]}}`, `{name: d, effect: deny, match: {names: [b, c, a]}}`, true},
		{"everything, written", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {namespaces: ["*"], verbs: ["*"]}}`, true},
		{"excluded by both", `{name: r, effect: allow, match: {namespaces: ["*", "!kube-*"]}}`, `{name: d, effect: deny, match: {namespaces: ["!kube-system"]}}`, true},
		{"of anybody's group", `{name: r, effect: allow, match: {principals: {groups: [a]}}}`, `{name: d, effect: deny, match: {principals: {groups: ["*"]}}}`, true},
		{"with a condition of its own", `{name: r, effect: allow, when: tool == "a"}`, `{name: d, effect: deny}`, true},
		{"by namespace", `{name: r, effect: allow, match: {namespaceSelector: {matchLabels: {a: b}}}}`, `{name: d, effect: deny}`, true},

		{"another effect", `{name: r, effect: deny}`, `{name: d, effect: deny}`, false},
		{"nothing is denied", `{name: r, effect: allow}`, `{name: d, effect: require_approval, approval: {approvers: [sre]}}`, false},
		{"sometimes denied", `{name: r, effect: allow}`, `{name: d, effect: deny, when: "true"}`, false},
		{"denied in some namespaces", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {namespaceSelector: {matchLabels: {a: b}}}}`, false},
		{"one verb too many", `{name: r, effect: allow, match: {verbs: [get, list]}}`, `{name: d, effect: deny, match: {verbs: [get]}}`, false},
		{"one name too many", `{name: r, effect: allow, match: {names: [a, b]}}`, `{name: d, effect: deny, match: {names: [a]}}`, false},
		{"a wider star", `{name: r, effect: allow, match: {namespaces: ["prod*"]}}`, `{name: d, effect: deny, match: {namespaces: ["prod-*"]}}`, false},
		{"a star in the other place", `{name: r, effect: allow, match: {namespaces: ["*-prod"]}}`, `{name: d, effect: deny, match: {namespaces: ["prod-*"]}}`, false},
		{"excluded from the denial", `{name: r, effect: allow, match: {namespaces: ["*"]}}`, `{name: d, effect: deny, match: {namespaces: ["!kube-system"]}}`, false},
		{"everything but one", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {names: ["a*"]}}`, false},
		{"who has no group", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {principals: {groups: ["*"]}}}`, false},
		{"other callers", `{name: r, effect: allow, match: {principals: {groups: [a]}}}`, `{name: d, effect: deny, match: {principals: {groups: [b]}}}`, false},
		{"other subjects", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {principals: {subjects: [b]}}}`, false},
		{"other tools", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {tools: [b]}}`, false},
		{"another cluster", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {clusters: [b]}}`, false},
		{"the object itself", `{name: r, effect: allow}`, `{name: d, effect: deny, match: {subresources: [scale]}}`, false},
	} {
		for _, order := range []string{row.rule + "\n  - " + row.deny, row.deny + "\n  - " + row.rule} {
			set, err := load(file1("  - " + order))
			if err != nil {
				t.Fatalf("%s: %v", row.name, err)
			}
			if len(set.Warnings()) != map[bool]int{true: 1}[row.want] {
				t.Errorf("%s: warnings %q; want one: %v", row.name, set.Warnings(), row.want)
			}
		}
	}

	// A denial that is only watched makes nothing void but what is only watched.
	for _, row := range []struct{ enforced, shadow, want string }{
		{"  - {name: r, effect: allow}\n", "  - {name: d, effect: deny}\n", ""},
		{"  - {name: d, effect: deny}\n", "  - {name: r, effect: allow}\n", "q.yaml:7: rule r: has no effect: rule d denies all that it is about"},
		{"  - {name: x, effect: deny, match: {names: [a]}}\n", "  - {name: d, effect: deny}\n  - {name: r, effect: allow}\n", "q.yaml:8: rule r: has no effect: rule d denies all that it is about"},
	} {
		if got := strings.Join(twoFiles(t, row.enforced, "shadow", row.shadow).Warnings(), "\n"); got != row.want {
			t.Errorf("warnings %q; want %q", got, row.want)
		}
	}

	// By a guard, too: it says how to switch it off.
	set, err := load(fstest.MapFS{"p.yaml": {Data: []byte(header + "  - {name: all, effect: allow}\n  - {name: roles, effect: allow, match: {verbs: [create, patch], resources: [roles.rbac.authorization.k8s.io]}}\n")}})
	if want := []string{"p.yaml:7: rule roles: has no effect: rule guard:rbac-roles denies all that it is about; the guard is switched off by its name under guardsOff"}; err != nil || !slices.Equal(set.Warnings(), want) {
		t.Errorf("got %q, %v; want %q", set.Warnings(), err, want)
	}
}
