#include "hub_model.h"

#include <algorithm>
#include <charconv>
#include <utility>

namespace trimtab {

Model::Model(std::string model_name, std::shared_ptr<const Schema> columns, std::shared_ptr<const TensorSchema> inputs,
             std::vector<OutputSpec> specs, BatchPolicy policy)
    : name(std::move(model_name)),
      schema(std::move(columns)),
      tensors(std::move(inputs)),
      outputs(std::move(specs)),
      queue(std::move(policy)) {}

void Model::install(std::uint32_t now_live, std::vector<std::uint32_t> now_loaded,
                    const std::unordered_map<std::string, std::uint32_t>& now_aliases) {
    live = now_live;
    loaded = std::move(now_loaded);
    std::erase_if(sleepers_, [this](const Sleeper& sleeper) { return !is_loaded(sleeper.version); });
    for (auto& [alias, entry] : aliases_) entry.version = 0;
    for (const auto& [alias, version] : now_aliases) {
        Alias& entry = aliases_[alias];
        if (entry.lane == 0) {
            entry.lane = kFirstAlias + alias_versions_.size();
            alias_versions_.push_back(0);
        }
        entry.version = is_loaded(version) ? version : 0;
    }
    for (const auto& [alias, entry] : aliases_) alias_versions_[entry.lane - kFirstAlias] = entry.version;
}

bool Model::is_loaded(std::uint32_t version) const {
    return std::find(loaded.begin(), loaded.end(), version) != loaded.end();
}

std::optional<Lane> Model::lane_of(std::string_view version) {
    if (version.empty()) return kLive;
    std::uint32_t number = 0;
    const char* end = version.data() + version.size();
    const auto [rest, error] = std::from_chars(version.data(), end, number);
    if (error == std::errc{} && rest == end) {
        if (number != 0 && is_loaded(number)) return Lane{number};
        return std::nullopt;
    }
    const auto found = aliases_.find(std::string(version));
    if (found == aliases_.end() || found->second.version == 0) return std::nullopt;
    return found->second.lane;
}

std::uint32_t Model::resolve(Lane lane) const {
    if (lane == kLive) return live;
    if (lane >= kFirstAlias) return alias_versions_[lane - kFirstAlias];
    const auto number = static_cast<std::uint32_t>(lane);
    return is_loaded(number) ? number : 0;
}

bool Model::asleep(std::uint32_t version) const {
    return std::any_of(sleepers_.begin(), sleepers_.end(),
                       [version](const Sleeper& sleeper) { return sleeper.version == version; });
}

bool Model::put_to_sleep(std::uint32_t version) {
    if (std::find(computing.begin(), computing.end(), version) != computing.end()) return false;
    if (!is_loaded(version) || queue.waits_for(version, *this)) return false;
    if (!asleep(version)) sleepers_.push_back({version, false});
    return true;
}

void Model::wake_up(std::uint32_t version) {
    std::erase_if(sleepers_, [version](const Sleeper& sleeper) { return sleeper.version == version; });
}

bool Model::newly_wanted(std::uint32_t version) {
    for (Sleeper& sleeper : sleepers_) {
        if (sleeper.version == version) return !std::exchange(sleeper.wanted, true);
    }
    return false;
}

void Model::forget_wanted(std::uint32_t version) {
    for (Sleeper& sleeper : sleepers_) {
        if (sleeper.version == version) sleeper.wanted = false;
    }
}

std::string Model::known_versions() const {
    std::vector<std::uint32_t> sorted = loaded;
    std::sort(sorted.begin(), sorted.end());
    std::string text;
    const auto add = [&](const std::string& item) { text += (text.empty() ? "" : ", ") + item; };
    for (const std::uint32_t number : sorted) add(std::to_string(number));
    std::vector<std::string> names;
    for (const auto& [alias, entry] : aliases_) {
        if (entry.version != 0) names.push_back(alias);
    }
    std::sort(names.begin(), names.end());
    for (const std::string& alias : names) add(alias);
    return text;
}

BatchRows Model::take_rows() {
    if (!spare_.empty()) {
        BatchRows rows = std::move(spare_.back());
        spare_.pop_back();
        return rows;
    }
    if (schema) return {std::make_shared<Slab>(schema), nullptr};
    return {nullptr, std::make_shared<TensorSlab>(tensors)};
}

void Model::give_back(BatchRows rows) {
    constexpr std::size_t most = 2;
    if (rows.rows() > 4 * std::size_t{queue.policy().max_batch_size} || spare_.size() >= most) return;
    if (rows.slab) rows.slab->clear();
    if (rows.tensors) rows.tensors->clear();
    spare_.push_back(std::move(rows));
}

}  // namespace trimtab
