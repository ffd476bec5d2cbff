package policy

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// Rules in mode shadow are decided beside the others, and what they would make
// of a request is said where it is something else.
func TestShadow(t *testing.T) {
	const all = "  - {name: all, effect: allow}\n"
	const approval = ", approval: {approvers: [sre]}"
	for _, row := range []struct{ name, enforced, shadow, want, shown string }{
		{"would be denied", all, "  - {name: s, effect: deny, message: Not on Fridays.}", "allow all", "deny s: Not on Fridays."},
		{"would be asked for", all, "  - {name: s, effect: require_approval" + approval + "}", "allow all", "require_approval s: policy asks for approval: s"},
		{"would be allowed", "  - {name: r, effect: allow, match: {verbs: [list]}}", "  - {name: s, effect: allow}", "deny : no policy rule allows patch pods shop/web", "allow s"},
		{"would be allowed by another rule as well", all, "  - {name: s, effect: allow}", "allow all", "allow all s"},
		{"would be asked for twice", "  - {name: r, effect: require_approval" + approval + "}", "  - {name: s, effect: require_approval" + approval + "}",
			"require_approval r: policy asks for approval: r", "require_approval r s: policy asks for approval: r, s"},
		{"would be denied by another rule as well", "  - {name: r, effect: deny}", "  - {name: s, effect: deny}", "deny r: rule r denies it", "deny r s: rule r denies it; rule s denies it"},
		{"would be denied for a failure", all, "  - {name: s, effect: allow, when: args.x == 1}", "allow all", "deny s: rule s could not be evaluated: no such key: x"},
		{"about another thing", all, "  - {name: s, effect: deny, match: {verbs: [delete]}}", "allow all", ""},
		{"weaker", "  - {name: r, effect: deny}", "  - {name: s, effect: allow}", "deny r: rule r denies it", ""},
	} {
		show := func(effect Effect, rules []string, reason string) string {
			text := string(effect) + " " + strings.Join(rules, " ")
			if reason != "" {
				text += ": " + reason
			}
			return text
		}
		w := given(t, all)
		w.set = twoFiles(t, row.enforced, "shadow", row.shadow)
		d := w.decide("patch pods shop/web")
		if got := show(d.Effect, d.Rules, d.Reason); got != row.want {
			t.Errorf("%s: decides %s; want %s", row.name, got, row.want)
		}
		for _, a := range d.Approvals {
			if a.Rule == "s" {
				t.Errorf("%s: asks for %+v", row.name, a)
			}
		}
		shown := ""
		if s := d.Shadow; s != nil {
			shown = show(s.Effect, s.Rules, s.Reason)
		}
		if shown != row.shown {
			t.Errorf("%s: shows %q; want %q", row.name, shown, row.shown)
		}
	}
}

// What only shadow rules hang on is told apart, after all else is decided.
func TestShadowNeeds(t *testing.T) {
	w := given(t, "  - {name: x, effect: allow}")
	w.set = twoFiles(t, "  - {name: all, effect: allow}", "shadow", "  - {name: s, effect: deny, when: object.spec.replicas > 5}\n  - {name: s2, effect: deny, match: {namespaceSelector: {matchLabels: {env: prod}}}}")
	const text = "patch pods shop/web"
	if d := w.decide(text); d.Effect != Allow || d.Needs != 0 || d.ShadowNeeds != NeedNamespace || d.Shadow != nil {
		t.Errorf("first: %+v", d)
	}
	w = w.in(`{"metadata":{"labels":{"env":"dev"}}}`)
	if d := w.decide(text); d.Effect != Allow || d.Needs != 0 || d.ShadowNeeds != NeedPreview || d.Shadow != nil {
		t.Errorf("with the Namespace: %+v", d)
	}
	if d := w.seeing("", `{"spec":{"replicas":5}}`).decide(text); d.Effect != Allow || d.ShadowNeeds != 0 || d.Shadow != nil {
		t.Errorf("with a preview: %+v", d)
	}
	if d := w.seeing("", `{"spec":{"replicas":6}}`).decide(text); d.Effect != Allow || d.ShadowNeeds != 0 || d.Shadow == nil || d.Shadow.Effect != Deny || !slices.Equal(d.Shadow.Rules, []string{"s"}) {
		t.Errorf("with a preview of more: %+v", d)
	}

	w.set = twoFiles(t, "  - {name: r, effect: allow, when: object.spec.replicas < 3}", "shadow", "  - {name: s, effect: deny, when: namespaceObject == null}")
	w = w.with(func(r *Request) { r.NamespaceRead = false })
	if d := w.decide(text); d.Needs != NeedPreview || d.ShadowNeeds != 0 {
		t.Errorf("the enforced rules come first: %+v", d)
	}
}

// The conditions of shadow rules take nothing from the others' budget.
func TestShadowRulesHaveABudgetOfTheirOwn(t *testing.T) {
	w := given(t, "  - {name: x, effect: allow}").with(func(r *Request) {
		r.Args = map[string]any{"text": strings.Repeat("a", 8_000), "list": numbers(100_000)}
	})
	dear := "  - {name: slow, effect: deny, when: 'args.list.exists(x, x < 0)'}\n" // is stopped, and time has run out then
	for _, name := range []string{"s0", "s1", "s2", "s3", "s4"} {
		dear += "  - {name: " + name + `, effect: allow, when: '!args.text.contains(args.text + "b")'}` + "\n"
	}
	files := file1("  - {name: r, effect: allow, when: 'args.list.exists(x, x == 200)'}")
	files["a.yaml"] = &fstest.MapFile{Data: []byte(strings.Replace(header, "rules:", "mode: shadow\n  rules:", 1) + dear)} // is read first
	var err error
	if w.set, err = load(files); err != nil {
		t.Fatal(err)
	}
	d := w.decide("get pods shop/web")
	if d.Effect != Allow || !slices.Equal(d.Rules, []string{"r"}) {
		t.Errorf("decides %+v", d)
	}
	if d.Shadow == nil || d.Shadow.Effect != Deny || !slices.Contains(d.Shadow.Rules, "slow") || !slices.Contains(d.Shadow.Rules, "s4") {
		t.Errorf("shows %+v", d.Shadow)
	}
}

// Of several Actions, the shadow is the strictest of what each would be.
func TestStrictestShadow(t *testing.T) {
	allow := Decision{Effect: Allow, Rules: []string{"a"}}
	wouldDeny := Decision{Effect: Allow, Rules: []string{"a"}, Shadow: &Shadow{Deny, []string{"s"}, "S."}}
	wouldAllow := Decision{Effect: Deny, Reason: "No.", Shadow: &Shadow{Allow, []string{"t"}, ""}}
	wouldAsk := Decision{Effect: Allow, Rules: []string{"a"}, Shadow: &Shadow{RequireApproval, []string{"u"}, "U."}}
	deny := Decision{Effect: Deny, Rules: []string{"d"}, Reason: "D."}
	for _, row := range []struct {
		name   string
		in     []Decision
		effect Effect
		want   *Shadow
	}{
		{"none", []Decision{allow, allow}, Allow, nil},
		{"one of two", []Decision{allow, wouldDeny}, Allow, &Shadow{Deny, []string{"s"}, "S."}},
		{"the stricter", []Decision{wouldDeny, wouldAsk}, Allow, &Shadow{Deny, []string{"s"}, "S."}},
		{"denied all the same", []Decision{wouldAsk, deny}, Deny, nil},
		{"denied by one more", []Decision{wouldDeny, deny}, Deny, &Shadow{Deny, []string{"s", "d"}, "S.; D."}},
		{"one would be allowed, one is", []Decision{wouldAllow, allow}, Deny, &Shadow{Allow, []string{"t", "a"}, ""}},
		{"one would be allowed, one would be denied", []Decision{wouldAllow, wouldDeny}, Deny, &Shadow{Deny, []string{"s"}, "S."}},
		{"one would be allowed, one is denied", []Decision{wouldAllow, deny}, Deny, nil},
	} {
		d := Strictest(row.in)
		if d.Effect != row.effect || asJSON(t, d.Shadow) != asJSON(t, row.want) {
			t.Errorf("%s: %s, %s; want %s, %s", row.name, d.Effect, asJSON(t, d.Shadow), row.effect, asJSON(t, row.want))
		}
	}
	if d := Strictest([]Decision{{Effect: Allow, ShadowNeeds: NeedNamespace}, {Effect: Allow, ShadowNeeds: NeedPreview}}); d.Needs != 0 || d.ShadowNeeds != NeedNamespace|NeedPreview {
		t.Errorf("needs: %+v", d)
	}
	if d := Strictest([]Decision{{Effect: Allow, ShadowNeeds: NeedPreview}, deny}); d.ShadowNeeds != 0 {
		t.Errorf("nothing to look at once denied: %+v", d)
	}
}
