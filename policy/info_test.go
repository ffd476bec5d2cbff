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
