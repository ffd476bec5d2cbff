package audit

import (
	"os"
	"strings"
	"testing"

	kjson "sigs.k8s.io/json"

	"countersign/action"
)

// benched is an object as the server has it from an API server.
func benched(b *testing.B, file string) map[string]any {
	b.Helper()
	text, err := os.ReadFile("../action/testdata/" + file)
	if err != nil {
		b.Fatal(err)
	}
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &object); err != nil {
		b.Fatal(err)
	}
	return object
}

// BenchmarkMaskObject masks one object, of which it knows whether it is a Secret.
func BenchmarkMaskObject(b *testing.B) {
	data := map[string]any{}
	for _, key := range []string{"username", "password", "url", "tls.crt", "tls.key"} {
		data[key] = strings.Repeat("aHVudGVyMg", 40)
	}
	for _, row := range []struct {
		name   string
		object map[string]any
	}{
		{"deployment", benched(b, "deployment.json")},
		{"secret", map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": "checkout-db", "namespace": "shop"}, "data": data}},
	} {
		b.Run(row.name, func(b *testing.B) {
			MaskObject(row.object, row.name == "secret") // once: rules are made ready when they are first needed
			b.ReportAllocs()
			for b.Loop() {
				MaskObject(row.object, row.name == "secret")
			}
		})
	}
}

// BenchmarkMaskDiff masks the differences that approvers are shown.
func BenchmarkMaskDiff(b *testing.B) {
	change := action.Action{Verb: action.Patch, Namespace: "shop", Name: "checkout",
		Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}}
	preview := action.NewPreview(benched(b, "deployment.json"), benched(b, "deployment_dry_run.json"))
	b.ReportAllocs()
	for b.Loop() {
		MaskDiff(change, preview)
	}
}
