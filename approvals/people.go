package approvals

import (
	"slices"
	"strings"
)

// Person is who casts a vote, as the approver's channel identified them.
type Person struct {
	// ID is unique and stable: "local:1000" is the user id that the kernel
	// reports at the other end of the admin socket, "slack:T012/U034" a user of
	// a Slack workspace.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Accounts are all accounts that are known to be this person's, so that
	// nobody votes twice or decides what an agent does for them.
	Accounts []string `json:"accounts,omitempty"`
	// Sets are the approver sets that the person is in now.
	Sets []string `json:"sets"`
	// Via is where the person answers: the admin socket, or a channel of Slack.
	Via string `json:"via,omitempty"`
	// Barred is why the person may not decide anything, such as being a guest.
	Barred string `json:"barred,omitempty"`
}

func (p Person) String() string { return p.Name + " (" + p.ID + ")" }

// is reports whether one of the names is the person's. Names of accounts differ
// in their case between systems, and a mistake here must not count a vote.
func (p Person) is(names ...string) bool {
	own := append([]string{p.ID, p.Name}, p.Accounts...)
	return slices.ContainsFunc(names, func(name string) bool {
		return name != "" && slices.ContainsFunc(own, func(account string) bool {
			_, bare, _ := strings.Cut(account, ":")
			return strings.EqualFold(account, name) || strings.EqualFold(bare, name)
		})
	})
}

// same reports whether two accounts are one person's.
func (p Person) same(other Person) bool {
	return p.ID == other.ID || overlap(p.Accounts, other.Accounts)
}

// overlap reports whether one account is in both lists. It tells people apart
// rather too rarely: case is not looked at, and an e-mail address is also what
// tokens call its owner. So it is not for saying who is in a set.
func overlap(a, b []string) bool {
	plain := func(account string) string {
		if address, ok := strings.CutPrefix(account, "email:"); ok {
			return "principal:" + address
		}
		return account
	}
	return slices.ContainsFunc(a, func(x string) bool {
		return slices.ContainsFunc(b, func(y string) bool { return strings.EqualFold(plain(x), plain(y)) })
	})
}

// member reports whether an account is this member of a set. User names and ids
// are told apart by their case, e-mail addresses are not; nor do letters count
// that only fold to those of an address, such as the Kelvin sign to k.
func member(account, m string) bool {
	return account == m || strings.HasPrefix(m, "email:") && len(account) == len(m) && strings.EqualFold(account, m)
}

// Directory says who is in which approver set, and which accounts are one
// person's. An account is written with where it is from: "local:anna",
// "slack:U012AB3CD", "slackgroup:S012AB3CD", "email:anna@example.com",
// "principal:anna@example.com".
type Directory struct {
	// Sets are the accounts in each set. "local:*" is everybody on this machine
	// who can open the admin socket.
	Sets map[string][]string
	// People lists the accounts of each person of whom more than one is known.
	People [][]string
}

// Person is whoever has these accounts. Only accounts make members of sets; of
// those in also it is only known that they are the same person's.
func (d *Directory) Person(id, name string, accounts []string, also ...string) Person {
	p := Person{ID: id, Name: name, Accounts: append(slices.Clone(accounts), also...)}
	for set, members := range d.Sets {
		if slices.ContainsFunc(accounts, func(account string) bool {
			return slices.ContainsFunc(members, func(m string) bool { return member(account, m) })
		}) {
			p.Sets = append(p.Sets, set)
		}
	}
	slices.Sort(p.Sets)
	known := slices.Clone(p.Accounts)
	for _, person := range d.People {
		if overlap(person, known) {
			p.Accounts = append(p.Accounts, person...)
		}
	}
	// A group says where somebody belongs, not who somebody is.
	p.Accounts = slices.DeleteFunc(p.Accounts, func(a string) bool {
		return strings.HasPrefix(a, "slackgroup:") || a == "local:*"
	})
	slices.Sort(p.Accounts)
	p.Accounts = slices.Compact(p.Accounts)
	return p
}

// Linked returns the accounts with this prefix, without it, of the person whose
// principal has this name.
func (d *Directory) Linked(principal, prefix string) []string {
	var out []string
	for _, person := range d.People {
		if slices.ContainsFunc(person, func(a string) bool { return principal != "" && strings.EqualFold(a, "principal:"+principal) }) {
			for _, account := range person {
				if bare, ok := strings.CutPrefix(account, prefix); ok {
					out = append(out, bare)
				}
			}
		}
	}
	return out
}

// Members returns the accounts of the sets that have this prefix, without it.
func (d *Directory) Members(sets []string, prefix string) []string {
	var out []string
	for _, set := range sets {
		for _, account := range d.Sets[set] {
			if bare, ok := strings.CutPrefix(account, prefix); ok && !slices.Contains(out, bare) {
				out = append(out, bare)
			}
		}
	}
	return out
}
