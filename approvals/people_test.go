package approvals

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"countersign/action"
)

// directory has anna with an account everywhere, and bea of whom only two are known.
func directory() *Directory {
	return &Directory{
		Sets: map[string][]string{
			"sre":      {"local:bea", "slack:U0BEA", "slack:U0ANNA", "email:dora@example.com"},
			"security": {"slackgroup:S0SEC", "local:carl"},
			"all":      {"local:*"},
		},
		People: [][]string{
			{"local:anna", "slack:U0ANNA", "principal:anna@example.com", "principal:anna"},
			{"local:bea", "slack:U0BEA"},
			{"local:dora", "principal:dora@example.com"},
		},
	}
}

// Who somebody is: only the account that was used makes a member of a set, and
// all that are known of a person are the person's.
func TestPerson(t *testing.T) {
	for _, row := range []struct {
		name           string
		accounts, also string
		sets           string
		known          string
	}{
		{"a local user", "local:bea local:*", "", "all sre", "local:bea slack:U0BEA"},
		{"another name is another account", "local:bea2 local:*", "", "all", "local:bea2"},
		{"a user name in another case is another's", "local:Bea local:*", "", "all", "local:Bea local:bea slack:U0BEA"},
		{"an id in another case is none", "slack:u0bea", "", "", "local:bea slack:U0BEA slack:u0bea"},
		{"a Slack user of this id", "slack:U0BEA", "", "sre", "local:bea slack:U0BEA"},
		{"a user group makes a member and is nobody", "slack:U0NEW slackgroup:S0SEC", "", "security", "slack:U0NEW"},
		{"the sets of another account of hers do not count", "local:anna", "", "", "local:anna principal:anna principal:anna@example.com slack:U0ANNA"},
		{"an address that counts, in any case", "slack:U0NEW email:Dora@Example.com", "", "sre", "email:Dora@Example.com local:dora principal:dora@example.com slack:U0NEW"},
		{"an address that does not count", "slack:U0NEW", "email:dora@example.com", "", "email:dora@example.com local:dora principal:dora@example.com slack:U0NEW"},
		{"an address that only looks alike", "slack:U0NEW email:dora@example.com.evil", "", "", "email:dora@example.com.evil slack:U0NEW"},
		{"letters that fold to others", "slack:U0NEW email:\u212Aora@example.com email:dora@e\u017Fample.com", "", "", "email:dora@eſample.com email:\u212Aora@example.com slack:U0NEW"},
		{"an account of another kind of the same name", "slack:bea", "", "", "slack:bea"},
		{"nobody", "", "", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := directory().Person("id", "name", strings.Fields(row.accounts), strings.Fields(row.also)...)
			if got := strings.Join(p.Sets, " "); got != row.sets {
				t.Errorf("in the sets %q; want %q", got, row.sets)
			}
			if got := strings.Join(p.Accounts, " "); got != row.known {
				t.Errorf("known as %q; want %q", got, row.known)
			}
		})
	}
	d := directory()
	d.Sets["kin"] = []string{"email:kim@example.com"}
	if p := d.Person("id", "name", []string{"email:\u212Aim@example.com"}); p.Sets != nil {
		t.Errorf("a Kelvin sign is taken for a k: %v", p.Sets)
	}
	accounts := make([]string, 1, 8)
	accounts[0] = "local:bea"
	d.Person("id", "name", accounts, "x:y")
	if got := accounts[:2]; got[1] != "" {
		t.Errorf("it writes into its caller's list: %q", got)
	}
}

// Nobody decides what an agent does for them, whichever account the agent's
// token and the vote name.
func TestSelfApproval(t *testing.T) {
	agent := action.Principal{Issuer: "https://idp", Subject: "s-1", Username: "devin"}
	for _, row := range []struct {
		name           string
		acts           action.Principal
		accounts, also string
		self           bool
	}{
		{"her local account", action.Principal{OnBehalfOf: "anna"}, "local:anna", "", true},
		{"in another case", action.Principal{OnBehalfOf: "ANNA"}, "local:anna", "", true},
		{"linked: Slack to a token's name", action.Principal{OnBehalfOf: "anna@example.com"}, "slack:U0ANNA", "", true},
		{"linked, in another case", action.Principal{OnBehalfOf: "Anna@Example.COM"}, "slack:U0ANNA", "", true},
		{"linked: local to a token's name", action.Principal{OnBehalfOf: "anna@example.com"}, "local:anna", "", true},
		{"an address that does not count for sets", action.Principal{OnBehalfOf: "new@example.com"}, "slack:U0NEW", "email:New@example.com", true},
		{"an address that is linked to a local account", action.Principal{OnBehalfOf: "dora@example.com"}, "local:dora", "", true},
		{"who is the caller, by user name", action.Principal{Username: "anna"}, "slack:U0ANNA", "", true},
		{"who is the caller, by subject", action.Principal{Subject: "anna@example.com"}, "slack:U0ANNA", "", true},
		{"the Slack id itself", action.Principal{OnBehalfOf: "U0ANNA"}, "local:anna", "", true},
		{"somebody else", action.Principal{OnBehalfOf: "anna@example.com"}, "slack:U0BEA", "", false},
		{"somebody of a like name", action.Principal{OnBehalfOf: "anna@example.com"}, "local:ann", "", false},
		{"a group of that name", action.Principal{OnBehalfOf: "S0SEC"}, "slack:U0NEW slackgroup:S0SEC", "", false},
		{"nobody is acted for", action.Principal{}, "slack:U0BEA", "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			op := pending()
			op.Principal = agent
			op.Principal.OnBehalfOf = row.acts.OnBehalfOf
			if row.acts.Username != "" {
				op.Principal.Username = row.acts.Username
			}
			if row.acts.Subject != "" {
				op.Principal.Subject = row.acts.Subject
			}
			p := directory().Person("id", "", strings.Fields(row.accounts), strings.Fields(row.also)...)
			p.Sets = []string{"sre"} // and that does not help
			for _, b := range []Ballot{{Approve: true}, {Reason: "no"}} {
				if _, err := op.Vote(p, b, noon); errors.Is(err, ErrSelfApproval) != row.self || !row.self && err != nil {
					t.Errorf("%+v: %v; want own request: %v", b, err, row.self)
				}
			}
		})
	}
}

// A person is one vote, with however many accounts.
func TestOnePersonTwoAccounts(t *testing.T) {
	person := func(id string, accounts ...string) Person {
		p := directory().Person(id, id, accounts)
		p.Sets = []string{"sre"}
		return p
	}
	for _, row := range []struct {
		name       string
		one, other Person
		same       bool
	}{
		{"linked accounts", person("local:1", "local:bea"), person("slack:T/U0BEA", "slack:U0BEA"), true},
		{"linked, the other way round", person("slack:T/U0BEA", "slack:U0BEA"), person("local:1", "local:bea"), true},
		{"one id", person("local:1", "local:x"), person("local:1", "local:y"), true},
		{"an address in another case", person("slack:T/U1", "slack:U1", "email:x@example.com"), person("slack:T/U2", "slack:U2", "email:X@example.com"), true},
		{"an address, and a local account that is linked to it", person("slack:T/U1", "slack:U1", "email:dora@example.com"), person("local:3", "local:dora"), true},
		{"two of one user group", person("slack:T/U1", "slack:U1", "slackgroup:S0SEC"), person("slack:T/U2", "slack:U2", "slackgroup:S0SEC"), false},
		{"two who may open the socket", person("local:1", "local:x", "local:*"), person("local:2", "local:y", "local:*"), false},
		{"one name in two places", person("local:1", "local:kim"), person("slack:T/KIM", "slack:kim"), false},
	} {
		op := pending()
		op, err := op.Vote(row.one, Ballot{Approve: true}, noon)
		if err != nil {
			t.Fatal(row.name, err)
		}
		after, err := op.Vote(row.other, Ballot{Approve: true}, noon)
		if errors.Is(err, ErrVoted) != row.same || !row.same && (err != nil || len(after.Votes) != 2) {
			t.Errorf("%s: %v; want one person: %v", row.name, err, row.same)
		}
	}
}

// Who is barred decides nothing: not yes, not no, in whichever sets.
func TestBarred(t *testing.T) {
	guest := person("gus", "sre", "security")
	guest.Barred = "guests do not decide"
	for _, b := range []Ballot{{Approve: true, Reason: "ok"}, {Reason: "no"}, {Approve: true, Reason: "ok", Grant: true}} {
		op := grantable()
		after, err := op.Vote(guest, b, noon)
		if !errors.Is(err, ErrBarred) || err.Error() != "may not decide: gus: guests do not decide" || !reflect.DeepEqual(after, op) {
			t.Errorf("%+v: %v, %+v", b, err, after)
		}
	}
}

// A reason is told to agents and kept in the log: it has an end.
func TestLongReason(t *testing.T) {
	for _, row := range []struct {
		reason string
		want   error
	}{
		{strings.Repeat("ü", MaxReason), nil}, {strings.Repeat("ü", MaxReason+1), ErrReason}, {strings.Repeat(" ", MaxReason) + "x", ErrReason},
	} {
		for _, approve := range []bool{true, false} {
			if _, err := pending().Vote(person("bea", "sre"), Ballot{Approve: approve, Reason: row.reason}, noon); !errors.Is(err, row.want) {
				t.Errorf("%d characters: %v; want %v", len([]rune(row.reason)), err, row.want)
			}
		}
	}
}

func TestLinkedAndMembers(t *testing.T) {
	d := directory()
	d.Sets["other"] = []string{"slack:U0BEA", "slack:U0NEW", "slackgroup:S0OTHER"}
	for _, row := range []struct{ principal, want string }{
		{"anna@example.com", "U0ANNA"}, {"Anna", "U0ANNA"}, {"bea", ""}, {"", ""}, {"principal:anna", ""},
	} {
		if got := strings.Join(d.Linked(row.principal, "slack:"), " "); got != row.want {
			t.Errorf("%q is linked to %q; want %q", row.principal, got, row.want)
		}
	}
	for _, row := range []struct{ sets, prefix, want string }{
		{"sre other", "slack:", "U0BEA U0ANNA U0NEW"}, {"security other", "slackgroup:", "S0SEC S0OTHER"}, {"all", "slack:", ""}, {"none", "slack:", ""},
	} {
		if got := strings.Join(d.Members(strings.Fields(row.sets), row.prefix), " "); got != row.want {
			t.Errorf("%s of %s: %q; want %q", row.prefix, row.sets, got, row.want)
		}
	}
}

// An operation that ran without a question, or under a grant, asked nobody.
func TestAsked(t *testing.T) {
	for name, row := range map[string]struct {
		op   Operation
		want bool
	}{
		"a question":    {pending(), true},
		"no question":   {Operation{State: Executing}, false},
		"under a grant": {Operation{State: Executing, Requirements: pending().Requirements, Grant: "g"}, false},
	} {
		if row.op.Asked() != row.want {
			t.Errorf("%s: asked %v", name, row.op.Asked())
		}
	}
}
