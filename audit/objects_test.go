package audit

import (
	"encoding/base64"
	"strings"
	"testing"

	"countersign/action"
)

// Where people choose the names, name and value decide together.
func TestMaskByName(t *testing.T) {
	opaque := base64.StdEncoding.EncodeToString([]byte("x=1\npassword=hunter2\n"))
	for _, row := range []struct{ name, in, want string }{
		{"environment", `{"env":[{"name":"DB_PASSWORD","value":"hunter2"},{"name":"LOG_LEVEL","value":"debug"}]}`, `{"env":[{"name":"DB_PASSWORD","value":"***"},{"name":"LOG_LEVEL","value":"debug"}]}`},
		{"environment, no credentials", `{"env":[{"name":"PASSWORD_FILE","value":"/run/db"},{"name":"DB_PASSWORD","value":"$(OTHER)"},{"name":"SECRET_NAME","value":"db"},{"name":"TOKEN_TTL","value":"1h"},{"name":"AUTH_TOKEN","value":"true"},{"name":"TLS_SECRET","value":"web-tls"},{"name":"SORT_KEY","value":"created"},{"name":"DB_PASSWORD","valueFrom":{"secretKeyRef":{"name":"db","key":"password"}}}]}`, ""},
		{"a header", `{"httpHeaders":[{"name":"X-Api-Key","value":"hunter2"}]}`, `{"httpHeaders":[{"name":"X-Api-Key","value":"***"}]}`},
		{"a ConfigMap", `{"kind":"ConfigMap","data":{"db.password":"hunter2","db.user":"app","application.properties":"a=1\nspring.datasource.password=hunter2\n"}}`, `{"data":{"application.properties":"a=1\nspring.datasource.password=***\n","db.password":"***","db.user":"app"},"kind":"ConfigMap"}`},
		{"a list of ConfigMaps", `{"kind":"ConfigMapList","items":[{"data":{"apiKey":"hunter2"}}]}`, `{"items":[{"data":{"apiKey":"***"}}],"kind":"ConfigMapList"}`},
		{"binary data", `{"kind":"ConfigMap","binaryData":{"a":"` + opaque + `","b":"AAECAw==","password":"aHVudGVyMg=="}}`, `{"binaryData":{"a":"***","b":"AAECAw==","password":"***"},"kind":"ConfigMap"}`},
		{"annotations", `{"metadata":{"annotations":{"example.com/token":"hunter2","example.com/auth-secret":"shop/basic-auth","checksum/secret":"` + strings.Repeat("0a1b2c3d", 8) + `"}}}`, `{"metadata":{"annotations":{"checksum/secret":"` + strings.Repeat("0a1b2c3d", 8) + `","example.com/auth-secret":"shop/basic-auth","example.com/token":"***"}}}`},
		{"labels go by their text", `{"metadata":{"labels":{"token":"hunter2"}}}`, ""},
		{"arguments", `{"args":["--password=hunter2","--token","hunter2","--user","app","--password","--verbose"]}`, `{"args":["--password=***","--token","***","--user","app","--password","--verbose"]}`},
		{"a custom resource", `{"kind":"Database","spec":{"auth":{"password":"hunter2","clientSecret":"hunter2","user":"app","secretKey":"db-password"}}}`, `{"kind":"Database","spec":{"auth":{"clientSecret":"***","password":"***","secretKey":"db-password","user":"app"}}}`},
		{"Kubernetes' own fields", `{"metadata":{"uid":"6f1c2a3b-0d4e-4f5a-8b6c-7d8e9f0a1b2c"},"spec":{"volumes":[{"secret":{"secretName":"db-7f3a9"}},{"projected":{"sources":[{"serviceAccountToken":{"path":"token","expirationSeconds":3607,"audience":"vault"}}]}}],"tolerations":[{"key":"node.kubernetes.io/not-ready"}],"imagePullSecrets":[{"name":"registry-key"}],"automountServiceAccountToken":false,"tokenRequests":[{"audience":"vault","expirationSeconds":600}],"taints":[{"key":"gpu"}],"env":[{"valueFrom":{"configMapKeyRef":{"key":"hunter2","name":"a"}}}],"matchExpressions":[{"key":"hunter2","operator":"Exists"}]}}`, ""},
		{"a token split over lines in a ConfigMap", `{"kind":"ConfigMap","data":{"a":"` + "gh" + "p_" + `0a1B2c3D4e5F6g7H8i9J\n0kLmNoPqRsTuVwXy"}}`, `{"data":{"a":"***"},"kind":"ConfigMap"}`},
	} {
		if row.want == "" {
			row.want = encode(t, decode(t, row.in))
		}
		if got := encode(t, Mask(decode(t, row.in))); got != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.name, got, row.want)
		}
	}
}

var configMaps = action.Action{Verb: action.Patch, Resource: action.Resource{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true}, Namespace: "shop", Name: "c"}

func TestMaskPatchesByName(t *testing.T) {
	for _, row := range []struct {
		name       string
		action     action.Action
		of         action.PatchType
		body, want string
	}{
		{"a merge patch of a ConfigMap", configMaps, action.MergePatch, `{"data":{"password":"hunter2","a":"b"}}`, `{"data":{"a":"b","password":"***"}}`},
		{"a strategic merge patch of a Deployment", widgets, action.StrategicMergePatch, `{"spec":{"template":{"spec":{"containers":[{"name":"a","env":[{"name":"DB_PASSWORD","value":"hunter2"}]}]}}}}`, `{"spec":{"template":{"spec":{"containers":[{"env":[{"name":"DB_PASSWORD","value":"***"}],"name":"a"}]}}}}`},
		{"one key", configMaps, action.JSONPatch, `[{"op":"add","path":"/data/db.password","value":"hunter2"},{"op":"add","path":"/data/a","value":"b"}]`, `[{"op":"add","path":"/data/db.password","value":"***"},{"op":"add","path":"/data/a","value":"b"}]`},
		{"all keys", configMaps, action.JSONPatch, `[{"op":"add","path":"/data","value":{"password":"hunter2"}}]`, `[{"op":"add","path":"/data","value":{"password":"***"}}]`},
		{"an annotation", widgets, action.JSONPatch, `[{"op":"add","path":"/metadata/annotations/example.com~1token","value":"hunter2"}]`, `[{"op":"add","path":"/metadata/annotations/example.com~1token","value":"***"}]`},
		{"a variable", widgets, action.JSONPatch, `[{"op":"add","path":"/spec/containers/0/env/-","value":{"name":"DB_PASSWORD","value":"hunter2"}}]`, `[{"op":"add","path":"/spec/containers/0/env/-","value":{"name":"DB_PASSWORD","value":"***"}}]`},
		{"a variable's value, of what name is not known", widgets, action.JSONPatch, `[{"op":"replace","path":"/spec/containers/0/env/3/value","value":"hunter2"}]`, `[{"op":"replace","path":"/spec/containers/0/env/3/value","value":"***"}]`},
		{"a variable's value, its name tested", widgets, action.JSONPatch, `[{"op":"test","path":"/spec/env/3/name","value":"LEVEL"},{"op":"replace","path":"/spec/env/3/value","value":"debug"}]`, `[{"op":"test","path":"/spec/env/3/name","value":"LEVEL"},{"op":"replace","path":"/spec/env/3/value","value":"debug"}]`},
		{"a field of a custom resource", widgets, action.JSONPatch, `[{"op":"add","path":"/spec/password","value":"hunter2"}]`, `[{"op":"add","path":"/spec/password","value":"***"}]`},
	} {
		a := row.action
		a.Options.PatchType, a.Body = row.of, decode(t, row.body)
		if got := encode(t, MaskPlan(action.Plan{Actions: []action.Action{a}}).Actions[0].Body); got != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.name, got, row.want)
		}
	}
}

// The object says what a changed value is called.
func TestMaskDiffByName(t *testing.T) {
	for _, row := range []struct {
		name               string
		action             action.Action
		live, result, want string
	}{
		{"a variable", widgets, `{"spec":{"env":[{"name":"LEVEL","value":"a"},{"name":"DB_PASSWORD","value":"old"}]}}`, `{"spec":{"env":[{"name":"LEVEL","value":"b"},{"name":"DB_PASSWORD","value":"hunter2"}]}}`,
			`[{"op":"replace","path":"/spec/env/0/value","old":"a","new":"b"},{"op":"replace","path":"/spec/env/1/value","old":"***","new":"***"}]`},
		{"a variable that moved", widgets, `{"spec":{"env":[{"name":"LEVEL","value":"a"}]}}`, `{"spec":{"env":[{"name":"DB_PASSWORD","value":"hunter2"},{"name":"LEVEL","value":"a"}]}}`,
			`[{"op":"replace","path":"/spec/env/0/name","old":"LEVEL","new":"DB_PASSWORD"},{"op":"replace","path":"/spec/env/0/value","old":"***","new":"***"},{"op":"add","path":"/spec/env/1","new":{"name":"LEVEL","value":"a"}}]`},
		{"a key of a ConfigMap", configMaps, `{"data":{"db.password":"old","a":"x"}}`, `{"data":{"db.password":"hunter2","a":"y"}}`,
			`[{"op":"replace","path":"/data/a","old":"x","new":"y"},{"op":"replace","path":"/data/db.password","old":"***","new":"***"}]`},
		{"a key that is new", configMaps, `{"data":{}}`, `{"data":{"db.password":"hunter2"}}`, `[{"op":"add","path":"/data/db.password","new":"***"}]`},
		{"all data", configMaps, `{}`, `{"data":{"db.password":"hunter2"}}`, `[{"op":"add","path":"/data","new":{"db.password":"***"}}]`},
		{"a new ConfigMap", configMaps, ``, `{"kind":"ConfigMap","data":{"db.password":"hunter2"}}`, `[{"op":"add","path":"","new":{"data":{"db.password":"***"},"kind":"ConfigMap"}}]`},
		{"the value of a flag", widgets, `{"spec":{"args":["--token","old"]}}`, `{"spec":{"args":["--token","hunter2"]}}`, `[{"op":"replace","path":"/spec/args/1","old":"***","new":"***"}]`},
		{"a list that became one", widgets, `{"spec":{"a":"x"}}`, `{"spec":{"a":["x"]}}`, `[{"op":"replace","path":"/spec/a","old":"x","new":["x"]}]`},
	} {
		var objects [2]map[string]any
		for i, text := range []string{row.live, row.result} {
			if text != "" {
				objects[i] = decode(t, text).(map[string]any)
			}
		}
		if got := encode(t, MaskDiff(row.action, action.NewPreview(objects[0], objects[1]))); got != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.name, got, row.want)
		}
	}
}

// What a command was given is masked in the plan as well.
func TestMaskCommand(t *testing.T) {
	given := []string{"login", "--password", "h8Gq2Lw0Zk3x9VtR", "--user=app", "--token=h8Gq2Lw0Zk3x9VtR", "verbose"}
	plan := action.Plan{Actions: []action.Action{{Subresource: action.Exec, Options: action.Options{Command: given}}}}
	got := MaskPlan(plan).Actions[0].Options.Command
	if strings.Join(got, " ") != "login --password *** --user=app --token=*** verbose" || given[2] == Masked {
		t.Errorf("got %v", got)
	}
}
