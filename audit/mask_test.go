package audit

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"countersign/action"
)

// Values of Secrets are "hunter2" in these tests, or aHVudGVyMg==, which is its
// base64; tokens and keys are the texts below. None of them is ever left.
const (
	token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJib3QifQ.c2lnbmF0dXJl-_x"
	key   = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nhunter2==\n-----END RSA PRIVATE KEY-----"
)

func decode(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func encode(t *testing.T, v any) string {
	t.Helper()
	data, err := action.Canonical(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func clean(t *testing.T, name, text string) {
	t.Helper()
	for _, secret := range []string{"hunter2", "aHVudGVyMg", "MIIE", "eyJhbGciOiJSUzI1NiJ9", "c2lnbmF0dXJl"} {
		if strings.Contains(text, secret) {
			t.Errorf("%s: %s still holds %s", name, text, secret)
		}
	}
}

func TestMaskText(t *testing.T) {
	for _, row := range []struct{ name, in, want string }{
		{"nothing", "replicas: 3", "replicas: 3"},
		{"empty", "", ""},
		{"a token", token, "***"},
		{"a token among words", "Authorization: Bearer " + token + ", retrying", "Authorization: Bearer ***, retrying"},
		{"several", token + " and " + token, "*** and ***"},
		{"a token without its signature", strings.TrimSuffix(token, "c2lnbmF0dXJl-_x") + " x", "*** x"},
		{"a token in JSON", `{"token":"` + token + `"}`, `{"token":"***"}`},
		{"no token", "eyJ is how they begin; eyJhbGciOi.x.y is none", "eyJ is how they begin; eyJhbGciOi.x.y is none"},
		{"a private key", "key:\n" + key + "\nnext", "key:\n***\nnext"},
		{"several keys", key + "\n--\n" + key, "***\n--\n***"},
		{"other kinds of key", "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----, -----BEGIN OPENSSH PRIVATE KEY-----\nMIIE\n-----END OPENSSH PRIVATE KEY-----", "***, ***"},
		{"a key on one line", strings.ReplaceAll(key, "\n", `\n`) + " x", "*** x"},
		{"a key without its end", "a\n" + strings.TrimSuffix(key, "-----END RSA PRIVATE KEY-----"), "a\n***"},
		{"a key without its beginning", strings.TrimPrefix(key, "-----BEGIN RSA PRIVATE KEY-----\n") + "\nnext", "***\nnext"},
		{"a certificate is no secret", "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\nMIIabc\n-----END CERTIFICATE-----"},
		{"a public key is no secret", "-----BEGIN PUBLIC KEY-----\nMIIabc\n-----END PUBLIC KEY-----", "-----BEGIN PUBLIC KEY-----\nMIIabc\n-----END PUBLIC KEY-----"},
	} {
		if got := MaskText(row.in); got != row.want {
			t.Errorf("%s: got %q; want %q", row.name, got, row.want)
		}
	}
}

// Names and keys stay, so that a reader sees what was there; values go.
func TestMask(t *testing.T) {
	const secret = `{"kind":"Secret","metadata":{"name":"db"},"data":{"password":"aHVudGVyMg=="},"stringData":{"user":"hunter2"},"type":"Opaque"}`
	const masked = `{"data":{"password":"***"},"kind":"Secret","metadata":{"name":"db"},"stringData":{"user":"***"},"type":"Opaque"}`
	for _, row := range []struct{ name, in, want string }{
		{"null", `null`, `null`},
		{"numbers and truth", `{"a":1,"b":true,"c":null,"d":1.5}`, `{"a":1,"b":true,"c":null,"d":1.5}`},
		{"another object's data", `{"kind":"ConfigMap","data":{"a":"b"}}`, `{"data":{"a":"b"},"kind":"ConfigMap"}`},
		{"a Secret", secret, masked},
		{"a Secret in a List", `{"kind":"List","items":[` + secret + `,{"kind":"ConfigMap","data":{"a":"b"}}]}`, `{"items":[` + masked + `,{"data":{"a":"b"},"kind":"ConfigMap"}],"kind":"List"}`},
		{"a SecretList, whose items do not say so", `{"kind":"SecretList","items":[{"metadata":{"name":"db"},"data":{"password":"aHVudGVyMg=="}},7]}`, `{"items":[{"data":{"password":"***"},"metadata":{"name":"db"}},7],"kind":"SecretList"}`},
		{"a Secret within another object", `{"kind":"Template","objects":[{"deep":` + secret + `}]}`, `{"kind":"Template","objects":[{"deep":` + masked + `}]}`},
		{"a list at the top", `[` + secret + `]`, `[` + masked + `]`},
		{"values that are not text", `{"kind":"Secret","data":{"a":["hunter2"],"b":{"c":"hunter2"},"d":null}}`, `{"data":{"a":"***","b":"***","d":"***"},"kind":"Secret"}`},
		{"data that is no map", `{"kind":"Secret","data":"hunter2","stringData":["hunter2"]}`, `{"data":"***","kind":"Secret","stringData":"***"}`},
		{"last-applied", `{"kind":"ConfigMap","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"kind\":\"Secret\",\"data\":{\"a\":\"aHVudGVyMg==\"}}","team":"shop"}}}`,
			`{"kind":"ConfigMap","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"***","team":"shop"}}}`},
		{"a token and a key in text", `{"kind":"Pod","env":["Bearer ` + token + `"],"x":{"y":` + encode(t, key) + `}}`, `{"env":["Bearer ***"],"kind":"Pod","x":{"y":"***"}}`},
		{"values under a misspelt name", `{"kind":"Secret","metadata":{"name":"db"},"immutable":true,"stringdata":{"a":"hunter2"},"Data":["hunter2"]}`, `{"Data":"***","immutable":true,"kind":"Secret","metadata":{"name":"db"},"stringdata":{"a":"***"}}`},
		{"kind in another case is another kind", `{"kind":"secret","data":{"a":"b"}}`, `{"data":{"a":"b"},"kind":"secret"}`},
	} {
		in := decode(t, row.in)
		got := encode(t, Mask(in))
		if got != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.name, got, row.want)
		}
		clean(t, row.name, got)
		if !reflect.DeepEqual(in, decode(t, row.in)) {
			t.Errorf("%s: the input was changed", row.name)
		}
		if again := encode(t, Mask(Mask(in))); again != got {
			t.Errorf("%s: masked twice it is %s", row.name, again)
		}
	}
}

// What is known to be a Secret is masked though it does not say so.
func TestMaskObject(t *testing.T) {
	const text = `{"metadata":{"name":"db"},"data":{"password":"aHVudGVyMg=="},"inner":{"data":{"a":"b"}}}`
	in := decode(t, text).(map[string]any)
	if got, want := encode(t, MaskObject(in, true)), `{"data":{"password":"***"},"inner":{"data":"***"},"metadata":{"name":"db"}}`; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	if got := encode(t, MaskObject(in, false)); got != encode(t, in) {
		t.Errorf("another object was masked: %s", got)
	}
	if !reflect.DeepEqual(in, decode(t, text)) {
		t.Error("the input was changed")
	}
	if MaskObject(nil, true) != nil {
		t.Error("no object became one")
	}
}

var (
	secrets = action.Action{Verb: action.Patch, Resource: action.Resource{Version: "v1", Resource: "secrets", Kind: "Secret", Namespaced: true}, Namespace: "shop", Name: "db"}
	widgets = action.Action{Verb: action.Patch, Resource: action.Resource{Group: "example.com", Version: "v1", Resource: "widgets", Kind: "Widget", Namespaced: true}, Namespace: "shop", Name: "w"}
)

func TestMaskPlan(t *testing.T) {
	body := func(text string) any { return decode(t, text) }
	plan := action.Plan{Tool: "apply_manifest", Actions: []action.Action{secrets, secrets, widgets, widgets, widgets}}
	plan.Actions[0].Body = body(`{"kind":"Secret","stringData":{"password":"hunter2"}}`)
	plan.Actions[1].Body = body(`{"data":{"password":"aHVudGVyMg=="}}`) // a patch does not repeat the kind
	plan.Actions[2].Body = body(`{"spec":{"objects":[{"kind":"Secret","data":{"a":"aHVudGVyMg=="}}]}}`)
	plan.Actions[3].Body = body(`["` + token + `"]`)
	before := encode(t, plan)

	got := MaskPlan(plan)
	for i, want := range []string{
		`{"kind":"Secret","stringData":{"password":"***"}}`, `{"data":{"password":"***"}}`,
		`{"spec":{"objects":[{"data":{"a":"***"},"kind":"Secret"}]}}`, `["***"]`, `null`,
	} {
		if body := encode(t, got.Actions[i].Body); body != want {
			t.Errorf("action %d: body %s; want %s", i, body, want)
		}
		a := plan.Actions[i]
		a.Body = got.Actions[i].Body
		if !reflect.DeepEqual(a, got.Actions[i]) {
			t.Errorf("action %d: more than the body differs: %+v", i, got.Actions[i])
		}
	}
	if got.Tool != plan.Tool || encode(t, plan) != before {
		t.Error("the input was changed, or the tool")
	}
}

// A patch is masked by what it is a patch of; in a JSON Patch it is the path
// that says what a value is.
func TestMaskPlanOfPatches(t *testing.T) {
	for _, row := range []struct {
		name       string
		action     action.Action
		of         action.PatchType
		body, want string
	}{
		{"a merge patch", secrets, action.MergePatch, `{"stringData":{"a":"hunter2","b":null},"metadata":{"labels":{"team":"shop"}}}`, `{"metadata":{"labels":{"team":"shop"}},"stringData":{"a":"***","b":"***"}}`},
		{"a strategic merge patch", secrets, action.StrategicMergePatch, `{"data":{"$patch":"replace","a":"aHVudGVyMg=="},"$retainKeys":["hunter2"]}`, `{"$retainKeys":"***","data":{"$patch":"***","a":"***"}}`},
		{"one value", secrets, action.JSONPatch, `[{"op":"replace","path":"/data/a","value":"aHVudGVyMg=="}]`, `[{"op":"replace","path":"/data/a","value":"***"}]`},
		{"a test of a value", secrets, action.JSONPatch, `[{"op":"test","path":"/stringData/a","value":"hunter2"}]`, `[{"op":"test","path":"/stringData/a","value":"***"}]`},
		{"several values", secrets, action.JSONPatch, `[{"op":"add","path":"/data","value":{"a":"aHVudGVyMg==","b":"x"}}]`, `[{"op":"add","path":"/data","value":{"a":"***","b":"***"}}]`},
		{"values in lists, deep and under a misspelt name", secrets, action.JSONPatch, `[{"op":"add","path":"/data/a","value":["hunter2"]},{"op":"add","path":"/data/b","value":{"c":{"d":"hunter2"}}},{"op":"add","path":"/Data/a","value":"hunter2"}]`,
			`[{"op":"add","path":"/data/a","value":"***"},{"op":"add","path":"/data/b","value":{"c":"***"}},{"op":"add","path":"/Data/a","value":"***"}]`},
		{"what is no value", secrets, action.JSONPatch, `[{"op":"add","path":"/metadata/labels/a","value":"x"},{"op":"replace","path":"/type","value":"Opaque"},{"op":"add","path":"/immutable","value":true},{"op":"remove","path":"/data/a"},{"op":"move","from":"/data/a","path":"/data/b"}]`,
			`[{"op":"add","path":"/metadata/labels/a","value":"x"},{"op":"replace","path":"/type","value":"Opaque"},{"op":"add","path":"/immutable","value":true},{"op":"remove","path":"/data/a"},{"from":"/data/a","op":"move","path":"/data/b"}]`},
		{"a path that only begins like one", secrets, action.JSONPatch, `[{"op":"add","path":"/metadata2","value":"hunter2"},{"op":"add","path":"/typed/a","value":"hunter2"}]`, `[{"op":"add","path":"/metadata2","value":"***"},{"op":"add","path":"/typed/a","value":"***"}]`},
		{"the whole Secret", secrets, action.JSONPatch, `[{"op":"replace","path":"","value":{"metadata":{"name":"db"},"data":{"a":"aHVudGVyMg=="}}}]`, `[{"op":"replace","path":"","value":{"data":{"a":"***"},"metadata":{"name":"db"}}}]`},
		{"the whole Secret as text", secrets, action.JSONPatch, `[{"op":"replace","path":"","value":"hunter2"},{"op":"replace","value":["hunter2"]}]`, `[{"op":"replace","path":"","value":"***"},{"op":"replace","value":"***"}]`},
		{"what is no patch", secrets, action.JSONPatch, `["hunter2",{"op":"add","path":7,"value":"hunter2","Value":"hunter2"},["hunter2"]]`, `["***",{"Value":"***","op":"add","path":7,"value":"***"},"***"]`},
		{"operations that are no list", secrets, action.JSONPatch, `{"data":{"a":"aHVudGVyMg=="}}`, `{"data":{"a":"***"}}`},
		{"last-applied", widgets, action.JSONPatch, `[{"op":"add","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration","value":"hunter2"},{"op":"add","path":"/metadata/annotations","value":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2","team":"shop"}}]`,
			`[{"op":"add","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration","value":"***"},{"op":"add","path":"/metadata/annotations","value":{"kubectl.kubernetes.io/last-applied-configuration":"***","team":"shop"}}]`},
		{"another object", widgets, action.JSONPatch, `[{"op":"replace","path":"/data/a","value":"x"},{"op":"add","path":"/spec/o","value":{"kind":"Secret","data":{"a":"aHVudGVyMg=="}}},{"op":"add","path":"/spec/t","value":"Bearer ` + token + `"}]`,
			`[{"op":"replace","path":"/data/a","value":"x"},{"op":"add","path":"/spec/o","value":{"data":{"a":"***"},"kind":"Secret"}},{"op":"add","path":"/spec/t","value":"Bearer ***"}]`},
	} {
		a := row.action
		a.Options.PatchType, a.Body = row.of, decode(t, row.body)
		got := encode(t, MaskPlan(action.Plan{Actions: []action.Action{a}}).Actions[0].Body)
		if got != row.want {
			t.Errorf("%s:\ngot  %s\nwant %s", row.name, got, row.want)
		}
		clean(t, row.name, got)
		if before := encode(t, decode(t, row.body)); encode(t, a.Body) != before {
			t.Errorf("%s: the input was changed", row.name)
		}
	}
}

// An approver sees which keys of a Secret would change, and no value, whatever
// shape the change has.
func TestMaskDiff(t *testing.T) {
	for _, row := range []struct {
		name               string
		action             action.Action
		live, result, want string
	}{
		{"a changed value", secrets, `{"data":{"a":"aHVudGVyMg==","b":"x"}}`, `{"data":{"a":"aHVudGVyMg","b":"x"}}`, `[{"op":"replace","path":"/data/a","old":"***","new":"***"}]`},
		{"a new and a removed key", secrets, `{"data":{"a":"aHVudGVyMg=="}}`, `{"data":{"b":"aHVudGVyMg=="}}`, `[{"op":"remove","path":"/data/a","old":"***"},{"op":"add","path":"/data/b","new":"***"}]`},
		{"all data new", secrets, `{}`, `{"data":{"a":"aHVudGVyMg=="},"stringData":{"b":"hunter2"}}`, `[{"op":"add","path":"/data","new":{"a":"***"}},{"op":"add","path":"/stringData","new":{"b":"***"}}]`},
		{"a new Secret", secrets, ``, `{"kind":"Secret","metadata":{"name":"db"},"data":{"a":"aHVudGVyMg=="}}`, `[{"op":"add","path":"","new":{"data":{"a":"***"},"kind":"Secret","metadata":{"name":"db"}}}]`},
		{"a Secret that would be gone", secrets, `{"metadata":{"name":"db"},"data":{"a":"aHVudGVyMg=="}}`, ``, `[{"op":"remove","path":"","old":{"data":{"a":"***"},"metadata":{"name":"db"}}}]`},
		{"what else a Secret has", secrets, `{"type":"Opaque","metadata":{"labels":{"data":"x"}}}`, `{"type":"Other","metadata":{"labels":{"data":"y"}}}`,
			`[{"op":"replace","path":"/metadata/labels/data","old":"x","new":"y"},{"op":"replace","path":"/type","old":"Opaque","new":"Other"}]`},
		{"all labels of a Secret, and a kind among them", secrets, `{"metadata":{}}`, `{"metadata":{"labels":{"team":"shop"},"annotations":{"kind":"Secret","a":"x","kubectl.kubernetes.io/last-applied-configuration":"hunter2"}}}`,
			`[{"op":"add","path":"/metadata/annotations","new":{"a":"***","kind":"Secret","kubectl.kubernetes.io/last-applied-configuration":"***"}},{"op":"add","path":"/metadata/labels","new":{"team":"shop"}}]`},
		{"values under a misspelt name", secrets, `{"stringdata":{"a":"hunter2"}}`, `{"stringdata":{"a":"hunter2!"},"Data":"hunter2"}`, `[{"op":"add","path":"/Data","new":"***"},{"op":"replace","path":"/stringdata/a","old":"***","new":"***"}]`},
		{"a Secret within, values under a misspelt name", widgets, `{"spec":{"kind":"Secret","stringdata":{"a":"x"}}}`, `{"spec":{"kind":"Secret","stringdata":{"a":"hunter2"}}}`, `[{"op":"replace","path":"/spec/stringdata/a","old":"***","new":"***"}]`},
		{"another kind's data", widgets, `{"data":{"a":"x"}}`, `{"data":{"a":"y"}}`, `[{"op":"replace","path":"/data/a","old":"x","new":"y"}]`},
		{"a Secret within, changed", widgets, `{"spec":{"o/b":[{"kind":"Secret","data":{"a":"aHVudGVyMg=="}}]}}`, `{"spec":{"o/b":[{"kind":"Secret","data":{"a":"aHVudGVyMg"}}]}}`,
			`[{"op":"replace","path":"/spec/o~1b/0/data/a","old":"***","new":"***"}]`},
		{"a Secret within, new data", widgets, `{"spec":{"kind":"Secret"}}`, `{"spec":{"kind":"Secret","stringData":{"a":"hunter2"}}}`, `[{"op":"add","path":"/spec/stringData","new":{"a":"***"}}]`},
		{"a Secret within, new", widgets, `{"spec":{}}`, `{"spec":{"o":[{"kind":"Secret","stringData":{"a":"hunter2"}}]}}`, `[{"op":"add","path":"/spec/o","new":[{"kind":"Secret","stringData":{"a":"***"}}]}]`},
		{"what becomes a Secret", widgets, `{"spec":{"kind":"ConfigMap","data":{"a":"x"}}}`, `{"spec":{"kind":"Secret","data":{"a":"aHVudGVyMg=="}}}`,
			`[{"op":"replace","path":"/spec/data/a","old":"***","new":"***"},{"op":"replace","path":"/spec/kind","old":"ConfigMap","new":"Secret"}]`},
		{"last-applied", widgets, `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2"}}}`, `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2 too"}}}`,
			`[{"op":"replace","path":"/metadata/annotations/kubectl.kubernetes.io~1last-applied-configuration","old":"***","new":"***"}]`},
		{"last-applied, with all annotations", widgets, `{"metadata":{}}`, `{"metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"hunter2","team":"shop"}}}`,
			`[{"op":"add","path":"/metadata/annotations","new":{"kubectl.kubernetes.io/last-applied-configuration":"***","team":"shop"}}]`},
		{"a token in any field", widgets, `{"spec":{"a":"x"}}`, `{"spec":{"a":"Bearer ` + token + `","b":["` + token + `"]}}`, `[{"op":"replace","path":"/spec/a","old":"x","new":"Bearer ***"},{"op":"add","path":"/spec/b","new":["***"]}]`},
		{"no change", secrets, `{}`, `{}`, `[]`},
	} {
		t.Run(row.name, func(t *testing.T) {
			var objects [2]map[string]any
			for i, text := range []string{row.live, row.result} {
				if text != "" {
					objects[i] = decode(t, text).(map[string]any)
				}
			}
			preview := action.NewPreview(objects[0], objects[1])
			before := encode(t, preview)
			got := encode(t, MaskDiff(row.action, preview))
			if got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			clean(t, row.name, got)
			if encode(t, preview) != before {
				t.Error("the input was changed")
			}
		})
	}
}
