package policy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/action"
)

// random makes rules and requests of so few words that they often meet.
type random struct {
	*rand.Rand
	failing bool // some conditions cannot be evaluated
}

func newRandom(seed uint64) random { return random{rand.New(rand.NewPCG(seed, 0)), false} }

func (r random) pick(list ...string) string { return list[r.IntN(len(list))] }

// some is a list of one to three of them, each perhaps excluded.
func (r random) some(list ...string) string {
	var out []string
	for range 1 + r.IntN(3) {
		entry := r.pick(list...)
		if r.IntN(6) == 0 && entry != "" && !strings.HasPrefix(entry, "!") {
			entry = "!" + entry
		}
		out = append(out, fmt.Sprintf("%q", entry))
	}
	return "[" + strings.Join(out, ", ") + "]"
}

// rules are n rules, named with a prefix, and their effects. A rule whose own
// entries exclude each other does not load, so it is left out.
func (r random) rules(prefix string, n int) string {
	var out []string
	for len(out) < n {
		var fields []string
		add := func(one int, name, value string) {
			if r.IntN(one) == 0 {
				fields = append(fields, name+": "+value)
			}
		}
		add(3, "principals", "{groups: "+r.some("a", "b", "a*", "*")+"}")
		add(8, "clusters", r.some("local", "other", "*"))
		add(6, "tools", r.some("t1", "t2", "t*"))
		add(2, "verbs", r.some("get", "list", "create", "patch", "delete", "*"))
		add(2, "resources", r.some("pods", "services", "namespaces", "nodes", "*", "deployments.apps", "*.apps"))
		add(4, "subresources", r.some("", "scale", "*"))
		add(2, "namespaces", r.some("shop", "prod-1", "prod-*", "*", ""))
		add(4, "names", r.some("web", "w*", "db", "*"))
		add(6, "namespaceSelector", "{matchLabels: {env: "+r.pick("dev", "prod")+"}}")
		effect := r.pick("allow", "allow", "deny", "require_approval")
		text := fmt.Sprintf("  - name: %s%d\n    effect: %s\n", prefix, len(out), effect)
		if effect == "require_approval" {
			text += "    approval: {approvers: [sre]}\n"
		}
		if len(fields) > 0 {
			text += "    match: {" + strings.Join(fields, ", ") + "}\n"
		}
		whens := []string{`action.name == "web"`, `size(principal.groups) > 1`, `object != null`, `namespaceObject == null || namespaceObject.metadata.labels.env == "dev"`, `"image changed" in risks`}
		if r.failing {
			whens = append(whens, `args.absent == 1`, `object.spec.x == 1`)
		}
		if r.IntN(3) == 0 {
			text += "    when: '" + r.pick(whens...) + "'\n"
		}
		if strings.Contains(text, `"!`) {
			if _, err := load(file1(text)); err != nil {
				continue
			}
		}
		out = append(out, text)
	}
	return strings.Join(out, "")
}

func (r random) request(t *testing.T) Request {
	resource := r.pick("pods", "services", "namespaces", "nodes", "deployments.apps")
	text := r.pick("get", "list", "create", "patch", "delete", "apply") + " " + resource
	if resource == "deployments.apps" && r.IntN(2) == 0 {
		text += "/scale"
	}
	switch resource {
	case "namespaces":
		text += r.pick("", " shop", " prod-1")
	case "nodes":
		text += r.pick("", " web", " n1")
	default:
		text += r.pick("", " shop/", " shop/web", " prod-1/web", " prod-1/db")
	}
	req := Request{
		Principal: &action.Principal{Groups: [][]string{nil, {"a"}, {"b"}, {"a", "b"}, {"ab"}, {"c"}}[r.IntN(6)]},
		Tool:      r.pick("t1", "t2", "u"), Now: noon, NamespaceRead: true,
		Action: request(t, text+r.pick("", "", "", "@other")),
	}
	if req.Action.Verb == action.List {
		req.Action.Name = "" // a list is about all
	}
	if namespace := NamespaceOf(req.Action); namespace != "" && r.IntN(4) > 0 {
		req.Namespace = object(t, `{"metadata":{"labels":{"env":"`+r.pick("dev", "prod")+`"}}}`)
	}
	if !req.Action.ReadOnly() {
		some := func() string {
			return r.pick("", `{"spec":{"containers":[{"image":"a"}]}}`, `{"spec":{"containers":[{"image":"b"}]}}`)
		}
		preview := action.NewPreview(object(t, some()), object(t, some()))
		req.Preview = &preview
	}
	return req
}

// twoFiles are enforced rules, and others in a mode.
func twoFiles(t *testing.T, enforced, mode, others string) *Set {
	t.Helper()
	files := file1(enforced)
	files["q.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(header, "rules:", "mode: "+mode+"\n  rules:", 1) + others)}
	set, err := load(files)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// A rule that is reported to have no effect, or never to apply, never does.
func TestShadowedRulesHaveNoEffect(t *testing.T) {
	reported, never := 0, 0
	known := Known{Approvers: approverSets, Resources: []string{"pods", "services", "namespaces", "nodes", "deployments.apps"}, Outside: []string{"namespaces", "nodes"}}
	for seed := range uint64(60) {
		r := newRandom(seed)
		rules := r.rules("r", 12)
		set, err := Load(file1(rules), known)
		if err != nil {
			t.Fatal(err)
		}
		var void []string
		for _, warning := range set.Warnings() {
			name, _, found := strings.Cut(warning[strings.Index(warning, "rule ")+5:], ":")
			switch {
			case found && strings.Contains(warning, "can never apply"):
				never++
			case !found || !strings.Contains(warning, "has no effect"):
				t.Fatalf("warning %q", warning)
			}
			void = append(void, name)
		}
		reported += len(void)
		for range 80 {
			req := r.request(t)
			d := set.Decide(req)
			for _, name := range void {
				if slices.Contains(d.Rules, name) {
					t.Fatalf("%s is reported to have no effect, and led to %+v for %s\n%s", name, d, asJSON(t, req), rules)
				}
			}
		}
	}
	if reported < 50 || never < 5 {
		t.Errorf("only %d rules were reported, %d of them never to apply", reported, never)
	}
}

// What Explain says of every rule is what Decide makes of them.
func TestExplainAgreesWithDecide(t *testing.T) {
	effects := map[Effect]int{}
	for seed := range uint64(40) {
		r := newRandom(seed)
		r.failing = true
		enforced, shadow := r.rules("r", 8), r.rules("s", 3)
		set := twoFiles(t, enforced, "shadow", shadow)
		for range 60 {
			req := r.request(t)
			d, rules := set.Decide(req), set.Explain(req)
			want := Decision{Effect: Deny}
			applying := map[Effect][]string{}
			for _, e := range rules {
				effect := e.Effect
				if strings.Contains(e.Why, "could not be evaluated") {
					effect = Deny
				}
				if e.Unknown || e.Why == "" || e.Shadow != strings.HasPrefix(e.Rule, "s") {
					t.Fatalf("%+v", e)
				}
				if e.Applies && !e.Shadow {
					applying[effect] = append(applying[effect], e.Rule)
				}
			}
			for _, effect := range []Effect{Allow, RequireApproval, Deny} {
				if len(applying[effect]) > 0 {
					want = Decision{Effect: effect, Rules: applying[effect]}
				}
			}
			slices.Sort(want.Rules)
			if d.Effect != want.Effect || !slices.Equal(d.Rules, want.Rules) {
				t.Fatalf("%s: decides %s by %v; explains %s by %v\n%s", asJSON(t, req), d.Effect, d.Rules, want.Effect, want.Rules, enforced)
			}
			effects[d.Effect]++

			// Without what was read, what Explain cannot tell is what Decide needs.
			req.Preview, req.NamespaceRead = nil, false
			d, rules = set.Decide(req), set.Explain(req)
			unknown := slices.ContainsFunc(rules, func(e Explanation) bool { return e.Unknown && !e.Applies && !e.Shadow })
			if d.Needs != 0 && !unknown {
				t.Fatalf("%s: needs %s, and every rule is explained", asJSON(t, req), d.Needs)
			}
		}
	}
	if len(effects) != 3 {
		t.Errorf("only %v were decided", effects)
	}
}

// Rules in mode shadow change nothing but what is said of them, and what is
// said is what would be decided if they were enforced.
func TestShadowRulesChangeNothing(t *testing.T) {
	others := 0
	for seed := range uint64(40) {
		r := newRandom(seed)
		r.failing = true
		rules, shadow := r.rules("r", 6), r.rules("s", 4)
		without, err := load(file1(rules))
		if err != nil {
			t.Fatal(err)
		}
		with, enforced := twoFiles(t, rules, "shadow", shadow), twoFiles(t, rules, "enforce", shadow)
		for range 60 {
			req := r.request(t)
			d, would := with.Decide(req), enforced.Decide(req)
			got := d
			got.Shadow, got.Digest = nil, without.Digest()
			if want := without.Decide(req); asJSON(t, got) != asJSON(t, want) {
				t.Fatalf("%s: %+v; without shadow rules %+v", asJSON(t, req), got, want)
			}
			shown := Shadow{d.Effect, d.Rules, d.Reason}
			if d.Shadow != nil {
				shown = *d.Shadow
				others++
			}
			if shown.Effect != would.Effect || !slices.Equal(shown.Rules, would.Rules) {
				t.Fatalf("%s: shows %+v; enforced %+v", asJSON(t, req), shown, would)
			}
			scopes := []action.Scope{{Verbs: req.Action.Verbs(), Resource: req.Action.Resource.GroupResource(), Subresource: req.Action.Subresource}}
			if _, could := without.Could(req.Principal, req.Tool, scopes); true {
				if _, same := with.Could(req.Principal, req.Tool, scopes); same != could {
					t.Fatalf("%s: could %v; without shadow rules %v", asJSON(t, req), same, could)
				}
			}
			// Nor what has to be read.
			req.Preview, req.NamespaceRead = nil, false
			if d, want := with.Decide(req), without.Decide(req); d.Needs != want.Needs || want.Needs == 0 && d.Effect != want.Effect {
				t.Fatalf("%s: needs %s; without shadow rules %s", asJSON(t, req), d.Needs, want.Needs)
			}
		}
	}
	if others < 50 {
		t.Errorf("only %d decisions would be another", others)
	}
}
