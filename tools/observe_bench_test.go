package tools

import (
	"fmt"
	"strings"
	"testing"

	"countersign/action"
)

func BenchmarkGrepLog(b *testing.B) {
	var log strings.Builder
	for i := 0; log.Len() < maxSearched; i++ {
		fmt.Fprintf(&log, "level=info msg=\"request\" method=GET path=/products/%d status=200 duration_ms=%d user=alice@example.com %s\n", i, i%97, strings.Repeat("x", 700))
	}
	r := []Response{{Action: action.Action{Options: action.Options{Grep: "status=5", TailLines: maxLines}}, Body: []byte(log.String())}}
	b.SetBytes(int64(log.Len()))
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
	for b.Loop() {
		if _, err := renderTable(r); err != nil {
			b.Fatal(err)
		}
	}
}
