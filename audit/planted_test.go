package audit

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"countersign/audit/audittest"
)

// asJSON writes a text as JSON within a string.
func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// places are where a text can stand: what was there before masking, and after.
func places(t *testing.T, text string) map[string]func() (before, after string) {
	log := func(line string) func() (string, string) {
		return func() (string, string) { return line, MaskText(line) }
	}
	object := func(v any) func() (string, string) {
		data := asJSON(t, v)
		return func() (string, string) {
			var decoded any
			if err := json.Unmarshal([]byte(data), &decoded); err != nil {
				t.Fatal(err)
			}
			return data, asJSON(t, Mask(decoded))
		}
	}
	twice := base64.StdEncoding.EncodeToString([]byte("data: " + base64.StdEncoding.EncodeToString([]byte(text))))
	return map[string]func() (string, string){
		"log line":         log("2026-01-02T03:04:05Z stderr F starting with " + text),
		"log line, amid":   log("I0102 03:04:05.000000 1 main.go:1] setting (" + text + ") was read"),
		"lines":            log("mode=fast\n" + text + "\nlevel=3\n"),
		"JSON":             log(asJSON(t, map[string]string{"msg": text, "level": "info"})),
		"JSON in a string": log(asJSON(t, map[string]string{"msg": asJSON(t, map[string]string{"note": text})})),
		"base64":           log("blob: " + base64.StdEncoding.EncodeToString([]byte("note: "+text+"\n"))),
		"base64 for URLs":  log("blob: " + base64.URLEncoding.EncodeToString([]byte("note: "+text+"\n"))),
		"base64 twice":     log("blob: " + twice),
		"ConfigMap":        object(map[string]any{"kind": "ConfigMap", "data": map[string]any{"settings.txt": "mode=fast\n" + text + "\n"}}),
		"ConfigMap, JSON":  object(map[string]any{"kind": "ConfigMap", "data": map[string]any{"settings.json": asJSON(t, map[string]any{"a": text})}}),
		"binaryData":       object(map[string]any{"kind": "ConfigMap", "binaryData": map[string]any{"settings": base64.StdEncoding.EncodeToString([]byte(text))}}),
		"environment":      object(map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"env": []any{map[string]any{"name": "SETTING", "value": text}}}}}}),
		"annotation":       object(map[string]any{"metadata": map[string]any{"annotations": map[string]any{"example.com/note": text}}}),
		"argument":         object(map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"args": []any{"run", text}}}}}),
	}
}

func TestPlanted(t *testing.T) {
	planted := audittest.Planted()
	kinds := map[string]bool{}
	for _, secret := range planted {
		kinds[secret.Kind] = true
		for place, masked := range places(t, secret.Text) {
			if _, text := masked(); leaks(text, secret.Value) {
				t.Errorf("%s in %s: %s", secret.Kind, place, text)
			}
		}
	}
	if len(planted) < 60 || len(kinds) < 20 {
		t.Errorf("only %d of %d kinds", len(planted), len(kinds))
	}
}

// leaks reports whether a value is in a text, also as JSON or base64 write it.
func leaks(text, value string) bool {
	escaped, _ := json.Marshal(value)
	if strings.Contains(text, value) || strings.Contains(text, strings.Trim(string(escaped), `"`)) {
		return true
	}
	for off := range 3 { // base64 begins at every third byte
		whole := value[off : off+(len(value)-off)/3*3]
		if strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(whole))) || strings.Contains(text, base64.URLEncoding.EncodeToString([]byte(whole))) {
			return true
		}
	}
	return false
}

func TestLookalikes(t *testing.T) {
	all := audittest.Lookalikes()
	if len(all) < 60 {
		t.Errorf("only %d", len(all))
	}
	for _, text := range all {
		for place, masked := range places(t, text) {
			if before, after := masked(); before != after {
				t.Errorf("%q in %s: %s", text, place, after)
			}
		}
	}
}

// Log collectors cut long lines, and terminals colour them.
func TestBrokenTokens(t *testing.T) {
	for _, secret := range audittest.Planted() {
		if secret.Text != secret.Value || len(secret.Value) > 200 || strings.Contains("terraform-cloud slack-webhook openai azure-client-secret twilio", secret.Kind) {
			continue
		}
		at := len(secret.Value) * 2 / 3
		if end := secret.Value[at:]; len(end) < 8 || !random(end) {
			continue // it reads like a word, which is left
		}
		for name, between := range map[string]string{"line break": "\n", "CRLF": "\r\n", "indent": "\n    ", "in JSON": `\n`, "colour": "\x1b[31m", "colour in JSON": `\u001b[31m`, "no width": "\u200b", "soft hyphen": "\u00ad"} {
			for _, at := range []int{2, at} {
				text := "using " + secret.Value[:at] + between + secret.Value[at:] + "\nnext line of the log"
				got := MaskText(text)
				if strings.Contains(got, secret.Value[:at]) && at > 2 || strings.Contains(got, secret.Value[at:]) {
					t.Errorf("%s, %s at %d: %q", secret.Kind, name, at, got)
				}
				if !strings.Contains(got, "using ") || !strings.HasSuffix(got, "next line of the log") {
					t.Errorf("%s, %s: too much is gone: %q", secret.Kind, name, got)
				}
			}
		}
	}
}
