package action

import (
	"encoding/json"
	"os"
	"testing"
)

// benched is a change of several fields of a Deployment as an API server previews it:
// the live object, with its bookkeeping and status, and the result of the dry run.
func benched(b *testing.B) Preview {
	b.Helper()
	var objects [2]map[string]any
	for i, file := range []string{"testdata/deployment.json", "testdata/deployment_dry_run.json"} {
		text, err := os.ReadFile(file)
		if err != nil {
			b.Fatal(err)
		}
		if err := json.Unmarshal(text, &objects[i]); err != nil {
			b.Fatal(err)
		}
	}
	return NewPreview(objects[0], objects[1])
}

func BenchmarkDiff(b *testing.B) {
	p := benched(b)
	if len(p.Diff) < 5 {
		b.Fatalf("too little differs: %v", p.Diff)
	}
	b.ReportAllocs()
	for b.Loop() {
		Diff(p.Live, p.Result)
	}
}

// BenchmarkPlanDigest is of a change of one field, and of applying a whole object.
func BenchmarkPlanDigest(b *testing.B) {
	deployment := Action{
		Cluster: "production", Verb: Patch, Namespace: "shop", Name: "checkout",
		Resource: Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
	}
	scale, apply := deployment, deployment
	scale.Subresource, scale.Options.PatchType, scale.Body = "scale", MergePatch, map[string]any{"spec": map[string]any{"replicas": int64(6)}}
	apply.Options.PatchType, apply.Body = ApplyPatch, Portable(benched(b).Result)
	for _, row := range []struct {
		name   string
		action Action
	}{{"scale", scale}, {"apply", apply}} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			plan := Plan{Tool: "t", Actions: []Action{row.action}}
			for b.Loop() {
				if _, err := plan.Digest(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPreviewDigest is of a changed object, and of a new one, whose digest is
// over all of it.
func BenchmarkPreviewDigest(b *testing.B) {
	changed := benched(b)
	for _, row := range []struct {
		name    string
		preview Preview
	}{{"changed", changed}, {"new", NewPreview(nil, changed.Result)}} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := PreviewDigest([]Preview{row.preview}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
