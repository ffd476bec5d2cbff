package tools

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"countersign/action"
	"countersign/audit"
)

func BenchmarkGrepLog(b *testing.B) {
	var log strings.Builder
	for i := 0; log.Len() < maxSearched; i++ {
		fmt.Fprintf(&log, "level=info msg=\"request\" method=GET path=/products/%d status=200 duration_ms=%d user=alice@example.com %s\n", i, i%97, strings.Repeat("x", 700))
	}
	r := []Response{{Action: action.Action{Options: action.Options{Grep: "status=5", TailLines: maxLines}}, Body: []byte(log.String())}}
	b.SetBytes(int64(log.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := renderLog(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkListOfFields(b *testing.B) {
	var items []string
	for i := range maxItems {
		items = append(items, fmt.Sprintf(`{"metadata":{"name":"pod-%d","namespace":"shop","labels":{"app":"web"},"managedFields":[{"manager":"x","fieldsV1":{"f:spec":{}}}]},"spec":{"nodeName":"n1","containers":[{"name":"app","image":"web:1","env":[{"name":"A","value":"b"}]}]},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`, i))
	}
	list := podsIn
	list.Options.Fields = []string{".spec.nodeName", ".spec.containers[*].image", `.status.conditions[?(@.type=="Ready")].status`}
	r := []Response{{Action: list, Body: []byte(`{"items":[` + strings.Join(items, ",") + `]}`)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := renderList(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTable(b *testing.B) {
	var rows []string
	for i := range maxItems {
		rows = append(rows, fmt.Sprintf(`{"cells":["checkout-7d9f8b6c5d-%05d","1/1","Running",0,"3d","10.0.0.1","node-1"]}`, i))
	}
	r := []Response{{Action: podsIn, Body: []byte(podTable("", rows...))}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := renderTable(r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkObject is what becomes of a Deployment in the answer to an agent: as YAML,
// of some fields alone, and as YAML once the gate has masked the text as well.
func BenchmarkObject(b *testing.B) {
	body, err := os.ReadFile("../action/testdata/deployment.json")
	if err != nil {
		b.Fatal(err)
	}
	get := action.Action{
		Verb: action.Get, Namespace: "shop", Name: "checkout",
		Resource: action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true},
	}
	text := func(fields ...string) string {
		get.Options.Fields = fields
		text, err := renderObject([]Response{{Action: get, Body: body}})
		if err != nil || !strings.Contains(text, "registry.example/shop/checkout:2.14.1") || strings.Contains(text, likeASecret) || strings.Contains(text, "managedFields") {
			b.Fatalf("%v\n%s", err, text)
		}
		return text
	}
	for _, row := range []struct {
		name string
		make func()
	}{
		{"yaml", func() { text() }},
		{"fields", func() {
			text(".spec.replicas", ".spec.template.spec.containers[*].image", `.status.conditions[?(@.type=="Available")].status`)
		}},
		{"masked", func() { audit.MaskText(text()) }},
	} {
		b.Run(row.name, func(b *testing.B) {
			row.make() // once: rules are made ready when they are first needed
			b.ReportAllocs()
			for b.Loop() {
				row.make()
			}
		})
	}
}
