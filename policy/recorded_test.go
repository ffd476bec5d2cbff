package policy

import (
	"slices"
	"testing"

	"countersign/action"
)

// What a log does not hold is what a decision hangs on, and the rules that look
// at it are named.
func TestDecideRecorded(t *testing.T) {
	w := given(t, `
  - {name: all, effect: allow, match: {verbs: [patch]}}
  - {name: fields, effect: deny, match: {namespaces: [shop]}, when: "'/spec' in fields"}
  - {name: object, effect: deny, match: {namespaces: [shop]}, when: object == null}
  - {name: space, effect: deny, match: {namespaces: [lab], namespaceSelector: {matchLabels: {a: b}}}}
`)
	for _, row := range []struct {
		request string
		body    bool
		effect  Effect
		needs   Need
		rules   []string
	}{
		{"patch pods other/a", false, Allow, 0, nil},
		{"patch pods shop/a", false, "", NeedBody | NeedPreview, []string{"fields", "object"}},
		{"patch pods shop/a", true, "", NeedPreview, []string{"object"}},
		{"patch pods lab/a", false, "", NeedNamespace, []string{"space"}},
		{"get pods shop/a", false, Deny, 0, nil}, // nothing allows it, whatever the rest says
	} {
		req := w.req
		req.Action = request(t, row.request)
		if req.Action.Verb == action.Patch {
			req.Action.Body = map[string]any{"metadata": map[string]any{"labels": nil}}
		}
		d, least, rules := w.set.DecideRecorded(req, row.body)
		if d.Needs != 0 && least.Effect != Allow {
			t.Errorf("%s: the rule that can be told allows it; got at least %+v", row.request, least)
		}
		if d.Effect != row.effect || d.Needs != row.needs || !slices.Equal(rules, row.rules) {
			t.Errorf("%s, body %v: got %+v, %v", row.request, row.body, d, rules)
		}
	}
}
