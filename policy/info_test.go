package policy

import (
	"slices"
	"testing"
	"testing/fstest"
)

func TestInfo(t *testing.T) {
	set, err := load(fstest.MapFS{"p.yaml": {Data: []byte(`
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: p}
spec:
  guardsOff: ["guard:proxy", "guard:loop"]
  rules:
  - {name: a, effect: allow}
  - {name: b, effect: deny, match: {verbs: [delete]}}
  limits:
  - {name: c, calls: 1, per: 1m}
`)}})
	if err != nil {
		t.Fatal(err)
	}
	info := set.Info()
	if info.Rules != 2 || info.Limits != 1 || !slices.Equal(info.GuardsOff, []string{"guard:loop", "guard:proxy"}) {
		t.Errorf("got %+v", info)
	}
}

// Who is asked, and whether for longer than once, stands with the rule; where,
// in Slack, is nothing for the agent.
func TestAboutApproval(t *testing.T) {
	w := given(t, `
  - {name: a, effect: require_approval, approval: {approvers: [sre, security], count: 2, grant: never, channel: C0123ABCD}, message: Careful.}
  - {name: b, effect: require_approval, approval: {approvers: [sre], grant: allowed}}
`)
	want := []string{"require_approval: a, by 2 of sre or security within 15m0s, no grants. Careful.", "require_approval: b, by 1 of sre within 15m0s"}
	if got := w.set.About(w.req.Principal); !slices.Equal(got, want) {
		t.Errorf("got %q; want %q", got, want)
	}
}
