/* query-block: the disks, in QEMU's shape. */
#include "config.h"

#include "daemon/machine.h"
#include "daemon/qmp-internal.h"
#include "device/virtio/blk.h"

static json_t *image_of(const struct vblk_info *info, struct device *disk, const char *path)
{
    json_t *image = json_object_new_object();

    json_add_str(image, "filename", path);
    json_add_str(image, "format", "raw");
    json_add_u64(image, "virtual-size", info->disk.size);
    json_add_u64(image, "actual-size", vblk_allocated(disk));
    json_add_bool(image, "dirty-flag", false);
    return image;
}

static json_t *inserted_of(const struct vblk_info *info, struct device *disk, const char *path)
{
    static const char *const limits[] = {"bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"};
    json_t *inserted = json_object_new_object(), *cache = json_object_new_object();

    json_add_str(inserted, "file", path);
    json_add_str(inserted, "node-name", info->name);
    json_add_bool(inserted, "ro", info->disk.read_only);
    json_add_str(inserted, "drv", "raw");
    json_add_i64(inserted, "backing_file_depth", 0);
    json_add_bool(inserted, "encrypted", false);
    json_add_str(inserted, "detect_zeroes", "off");
    json_add_i64(inserted, "write_threshold", 0);
    for (size_t i = 0; i < ARRAY_SIZE(limits); i++)
        json_add_i64(inserted, limits[i], 0);
    json_add(inserted, "image", image_of(info, disk, path));
    json_add_bool(cache, "writeback", true);
    json_add_bool(cache, "direct", info->disk.direct);
    json_add_bool(cache, "no-flush", false);
    json_add(inserted, "cache", cache);
    return inserted;
}

static json_t *disk_of(struct device *disk, const char *path)
{
    static const char *const statuses[] = {[VBLK_OK] = "ok", [VBLK_FAILED] = "failed", [VBLK_NOSPACE] = "nospace"};
    json_t *o = json_object_new_object();
    char qdev[64];
    struct vblk_info info;

    vblk_info(disk, &info);
    snprintf(qdev, sizeof(qdev), "/machine/%s", info.name);
    json_add_str(o, "device", info.name);
    json_add_str(o, "qdev", qdev);
    json_add_str(o, "type", "unknown");
    json_add_bool(o, "removable", false);
    json_add_bool(o, "locked", false);
    json_add_str(o, "io-status", statuses[info.status]);
    json_add(o, "inserted", inserted_of(&info, disk, path));
    /* What QEMU has no place for. */
    json_add_str(o, "serial", info.serial);
    json_add_str(o, "aio", info.disk.aio);
    json_add_i64(o, "queues", info.queues);
    json_add_i64(o, "held-back", info.held_back);
    json_add_bool(o, "needs-reset", info.needs_reset);
    return o;
}

json_t *qmp_query_block(struct qmp_request *req)
{
    const struct config *config = machine_config(req->machine);
    json_t *list = json_object_new_array();
    struct device *disk;

    for (unsigned int i = 0; (disk = machine_disk(req->machine, i)); i++)
        json_push(list, disk_of(disk, config->disks[i].path));
    return list;
}
