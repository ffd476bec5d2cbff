package approvals

import (
	"os"
	"strings"
	"testing"

	kjson "sigs.k8s.io/json"

	"countersign/action"
)

// BenchmarkQuestion writes what an approver reads: the whole text with the differences,
// and the few lines of a summary.
func BenchmarkQuestion(b *testing.B) {
	var objects [2]map[string]any
	for i, file := range []string{"deployment.json", "deployment_dry_run.json"} {
		text, err := os.ReadFile("../action/testdata/" + file)
		if err != nil {
			b.Fatal(err)
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &objects[i]); err != nil {
			b.Fatal(err)
		}
	}
	op := Operation{
		State: PendingApproval, Principal: action.Principal{Issuer: "https://idp", Subject: "s", Username: "devin"}, Tool: "patch_resource",
		Plan: action.Plan{Actions: []action.Action{{Cluster: "prod", Verb: action.Patch, Namespace: "shop", Name: "checkout",
			Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}}}},
		Diffs: [][]action.Change{action.Diff(objects[0], objects[1])},
	}
	if text := Text(op); !strings.Contains(text, "checkout:2.15.0") {
		b.Fatalf("the new image is not shown:\n%s", text)
	}
	b.Run("text", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Text(op)
		}
	})
	b.Run("summary", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Summary(op)
		}
	})
}
